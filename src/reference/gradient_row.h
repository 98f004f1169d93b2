// SPDX-License-Identifier: Apache-2.0
// What one query adds to the gradients, by the definition (see row.h for P, kept, lse):
//
//     dP_j    = kept_j * dout . v_j              delta  = sum_j P_j dP_j       ( = dout . out )
//     dS_j    = P_j (dP_j - delta + dlse)        dsink += P_sink (dlse - delta)
//     dbias_j += dS_j                            dv_j  += kept_j P_j dout
//     dT_j    = dS_j (1 - tanh^2)                with softcap, else dS_j
//     dq      = softmax_scale * sum_j dT_j k_j   dk_j  += softmax_scale * dT_j q
//
// dP and dS are rounded like S and P.
#pragma once

#include "reference/row.h"

namespace attentile::reference {

// The part of dbias that one task owns: [heads or 1][queries or 1][keys or 1], 1 where summed.
template <class Real>
struct DenseBias {
  // All zeros. False: stopped.
  bool resize(const int64_t (&shape)[4], int64_t heads, bool with_conditions, const Watch& watch) {
    num_heads = shape[1] == 1 ? 1 : heads;
    num_rows = shape[2];
    num_columns = shape[3];
    const int64_t size = num_heads * num_rows * num_columns;
    value.resize(static_cast<size_t>(size));
    if (!clear_list(&value, size, watch)) return false;
    if (!with_conditions) return true;
    condition.resize(value.size());
    return clear_list(&condition, size, watch);
  }
  size_t index(int64_t h, int64_t i, int64_t j) const {
    const int64_t head = num_heads == 1 ? 0 : h - first_head;
    const int64_t row = num_rows == 1 ? 0 : i;
    return static_cast<size_t>((head * num_rows + row) * num_columns + (num_columns == 1 ? 0 : j));
  }

  int64_t first_head = 0, num_heads = 0, num_rows = 0, num_columns = 0;
  List<Real> value;
  List<double> condition;
};

template <class Real>
struct GradientRow {
  GradientRow(const Problem& p, DType rounding, bool with_conditions)
      : row(p, rounding, with_conditions) {
    dout.resize(static_cast<size_t>(p.head_dim_v));
    dq.resize(static_cast<size_t>(p.head_dim));
    dk.resize(row.k.size());
    dv.resize(row.v.size());
    ds.resize(row.weight.size());
    if (!with_conditions) return;
    dq_condition.resize(dq.size());
    dk_condition.resize(dk.size());
    dv_condition.resize(dv.size());
    ds_condition.resize(ds.size());
  }

  bool enter_head(int64_t b, int64_t kv_head, const Watch& watch) {
    if (!row.enter_head(b, kv_head, watch)) return false;
    const int64_t size_k = row.s.seqlen_k * row.problem.head_dim;
    const int64_t size_v = row.s.seqlen_k * row.problem.head_dim_v;
    if (!clear_list(&dk, size_k, watch) || !clear_list(&dv, size_v, watch)) return false;
    if (!row.with_conditions) return true;
    return clear_list(&dk_condition, size_k, watch) && clear_list(&dv_condition, size_v, watch);
  }

  // Computes dq and dsink of this query; adds to dk, dv and dbias. False: stopped.
  bool enter_row(int64_t h, int64_t i, DenseBias<Real>* dbias, const Watch& watch) {
    const Problem& problem = row.problem;
    std::fill(dq.begin(), dq.end(), Real{0});
    std::fill(dq_condition.begin(), dq_condition.end(), 0.0);
    if (!row.enter_row(h, i, watch)) return false;
    const Sequence& s = row.s;
    bool finite = load_row(problem.dout.at(s.batch_q, s.row_q + i, h, 0), problem.dout,
                           problem.head_dim_v, dout.data());
    dlse = problem.dlse.present
               ? static_cast<Real>(load(problem.dlse, s.batch_q, h, s.row_q + i, 0))
               : Real{0};
    finite = finite && row.finite && std::isfinite(dlse) && !std::isnan(row.lse);
    if (row.dead) {  // only the sink, if any, holds weight: out is 0 and lse is the sink
      dsink = row.sink_weight == 0 ? Real{0} : row.sink_weight * dlse;
      dsink_condition = std::fabs(static_cast<double>(dsink));
      return true;
    }
    if (!compute_ds(watch)) return false;
    if (row.with_conditions && !compute_ds_condition(finite, watch)) return false;
    return accumulate(dbias, watch);
  }

  AttentionRow<Real> row;
  std::vector<Real> dout;  // [head_dim_v]
  std::vector<Real> dq;    // [head_dim]
  List<Real> dk, dv;       // [seqlen_k][head_dim], [seqlen_k][head_dim_v]: sums over queries
  std::vector<Real> ds;    // like row.keys
  Real dlse = 0;
  Real dsink = 0;
  std::vector<double> dq_condition, ds_condition;
  List<double> dk_condition, dv_condition;
  double dsink_condition = 0;
  bool tainted = false;  // a NaN or infinity may reach everything this row touches

 private:
  bool compute_ds(const Watch& watch) {
    const int64_t head_dim_v = row.problem.head_dim_v;
    Real delta = 0;
    for (size_t n = 0; n < row.keys.size(); ++n) {
      if (!watch.keep_going(static_cast<int64_t>(n))) return false;
      const Real* value = row.v.data() + row.keys[n] * head_dim_v;
      ds[n] = row.kept[n] * row.rounded(dot(dout.data(), value, head_dim_v));  // dP
      delta += row.weight[n] * ds[n];
    }
    for (size_t n = 0; n < row.keys.size(); ++n) {
      ds[n] = row.rounded(row.weight[n] * (ds[n] - delta + dlse));
    }
    dsink = row.sink_weight == 0 ? Real{0} : row.sink_weight * (dlse - delta);
    return true;
  }

  bool compute_ds_condition(bool finite, const Watch& watch) {
    const int64_t head_dim_v = row.problem.head_dim_v;
    const double dlse_magnitude = std::fabs(static_cast<double>(dlse));
    tainted = !finite;
    double delta = 0;
    for (size_t n = 0; n < row.keys.size(); ++n) {
      if (!watch.keep_going(static_cast<int64_t>(n))) return false;
      const Real* value = row.v.data() + row.keys[n] * head_dim_v;
      ds_condition[n] =
          static_cast<double>(row.kept[n]) * dot_of_magnitudes(dout.data(), value, head_dim_v);
      delta += row.magnitude[n] * ds_condition[n];
    }
    for (size_t n = 0; n < row.keys.size(); ++n) {
      const double sum = row.magnitude[n] * (ds_condition[n] + delta + dlse_magnitude);
      ds_condition[n] = tainted ? kNan : sum;
    }
    dsink_condition = tainted ? kNan : row.sink_magnitude * (delta + dlse_magnitude);
    return true;
  }

  bool accumulate(DenseBias<Real>* dbias, const Watch& watch) {
    const Problem& problem = row.problem;
    const Real scale = static_cast<Real>(problem.softmax_scale);
    for (size_t n = 0; n < row.keys.size(); ++n) {
      if (!watch.keep_going(static_cast<int64_t>(n))) return false;
      const int64_t j = row.keys[n];
      if (problem.dbias.present) dbias->value[dbias->index(row.h, row.i, j)] += ds[n];
      const Real t = row.tanh_term[n];
      const Real dt = problem.softcap > 0 ? ds[n] * (1 - t * t) : ds[n];
      add_scaled(dq.data(), dt, row.k.data() + j * problem.head_dim, problem.head_dim);
      add_scaled(dk.data() + j * problem.head_dim, dt * scale, row.q.data(), problem.head_dim);
      add_scaled(dv.data() + j * problem.head_dim_v, row.weight[n] * row.kept[n], dout.data(),
                 problem.head_dim_v);
      if (row.with_conditions) accumulate_conditions(n, dbias);
    }
    for (Real& element : dq) element *= scale;
    return true;
  }

  void accumulate_conditions(size_t n, DenseBias<Real>* dbias) {
    const Problem& problem = row.problem;
    const int64_t j = row.keys[n];
    if (problem.dbias.present) {
      dbias->condition[dbias->index(row.h, row.i, j)] += ds_condition[n];
    }
    const double t = static_cast<double>(row.tanh_term[n]);
    const double dt = (problem.softcap > 0 ? ds_condition[n] * (1 + t * t) : ds_condition[n]) *
                      std::fabs(problem.softmax_scale);
    const double dv_factor = tainted ? kNan : row.magnitude[n] * static_cast<double>(row.kept[n]);
    add_scaled_magnitudes(dq_condition.data(), dt, row.k.data() + j * problem.head_dim,
                          problem.head_dim);
    add_scaled_magnitudes(dk_condition.data() + j * problem.head_dim, dt, row.q.data(),
                          problem.head_dim);
    add_scaled_magnitudes(dv_condition.data() + j * problem.head_dim_v, dv_factor, dout.data(),
                          problem.head_dim_v);
  }
};

}  // namespace attentile::reference
