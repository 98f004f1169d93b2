// SPDX-License-Identifier: Apache-2.0
// One panel of queries against one tile of keys in the backward pass, on a matrix unit. The
// products and sums are those of backward_tile(); what the vectors do is packed as it is computed,
// and dP and dV go on beside it.
#pragma once

#include "cpu/backward_tile.h"

namespace attentile::cpu {

// What the passes over a tile work on, copied: for all that compilers know, a tile register is
// stored to whatever they reach by a pointer.
template <class Real>
struct PassOperands {
  Real* p = nullptr;
  Real* ds = nullptr;
  const Real* hide = nullptr;
  const Real* keep = nullptr;
  const Real* cap = nullptr;
  Parts p_rows = {}, ds_rows = {}, ds_lanes = {};
  PendingProduct<Real>* beside = nullptr;
  int64_t lanes = 0;
  int keys = 0;
  int padded_keys = 0;  // a multiple of 16
  bool partial = false;
  bool dropped = false;
  bool capped = false;
};

// P^T of logits for kVectors vectors of lanes, from lane i on: p and, unless dropout is to change
// it, p_rows.
template <int kParts, int kVectors, class Isa, class Real>
inline void weigh_rows(const PassOperands<Real>& given, const RowShift<Vec<Isa, Real>>* shift,
                       const ShiftedExp<Isa, Real>& given_exp, int i,
                       typename MatrixUnit<Isa, Real>::Faintness& faintness) {
  using V = Vec<Isa, Real>;
  using Unit = MatrixUnit<Isa, Real>;
  const PassOperands<Real> o = given;
  const ShiftedExp<Isa, Real> exp = given_exp;
  const RowShift<V> row0 = shift[0];
  const RowShift<V> row1 = shift[kVectors - 1];
  typename Unit::Faintness seen = faintness;
  const V zero = V::set1(Real{0});
  Real* cell = o.p + i;
  const Real* hide = o.hide + i;
  int k = 0;
  for (; k < o.keys; ++k, cell += o.lanes, hide += o.lanes) {
    V first = exp(V::load(cell), row0);
    V second = kVectors == 2 ? exp(V::load(cell + V::kLanes), row1) : zero;
    if (o.partial) {  // lse may be NaN, hidden weights are 0
      first = V::select_lt(V::load(hide), zero, zero, first);
      if (kVectors == 2) second = V::select_lt(V::load(hide + V::kLanes), zero, zero, second);
    }
    first.store(cell);
    if (kVectors == 2) second.store(cell + V::kLanes);
    if (!o.dropped) {
      seen.see(first);
      if (kVectors == 2) seen.see(second);
      Unit::template store_left<kParts>(first, second, o.p_rows, k, i);
    }
    if (k % 2 != 0) Unit::step(*o.beside);
  }
  for (; k < o.padded_keys; ++k, cell += o.lanes) {
    zero.store(cell);
    if (kVectors == 2) zero.store(cell + V::kLanes);
    Unit::template store_left<kParts>(zero, zero, o.p_rows, k, i);
  }
  faintness = seen;
}

// dS^T of P^T and dP^T for kVectors vectors of lanes, from lane i on: ds, ds_rows and ds_lanes;
// under dropout keep * P^T too: p and p_rows.
template <int kParts, int kVectors, class Isa, class Real>
inline void subtract_delta(const PassOperands<Real>& given, const Real* delta_rows, int i,
                           typename MatrixUnit<Isa, Real>::Faintness& faintness) {
  using V = Vec<Isa, Real>;
  using Unit = MatrixUnit<Isa, Real>;
  const PassOperands<Real> o = given;
  typename Unit::Faintness seen = faintness;
  const V zero = V::set1(Real{0});
  const V one = V::set1(Real{1});
  V delta[kVectors];
  for (int v = 0; v < kVectors; ++v) delta[v] = V::load(delta_rows + i + v * V::kLanes);
  int k = 0;
  for (; k < o.padded_keys; k += 2) {
    V ds[2][2] = {{zero, zero}, {zero, zero}};
    for (int n = 0; n < 2; ++n) {
      V kept[2] = {zero, zero};
      for (int v = 0; v < kVectors; ++v) {
        const int64_t at = (k + n) * o.lanes + i + v * V::kLanes;
        const V weight = V::load(o.p + at);
        V x = weight * (V::load(o.ds + at) - delta[v]);
        if (o.dropped) {
          kept[v] = V::select_lt(zero, weight, weight * V::load(o.keep + at), weight);
          kept[v].store(o.p + at);
          seen.see(kept[v]);
        }
        if (o.capped) {
          const V tanh_s = V::load(o.cap + at);
          x = x * (one - tanh_s * tanh_s);
        }
        ds[n][v] = V::select_lt(zero, weight, x, weight);
        ds[n][v].store(o.ds + at);
        seen.see(ds[n][v]);
      }
      if (o.dropped) Unit::template store_left<kParts>(kept[0], kept[1], o.p_rows, k + n, i);
      Unit::template store_left<kParts>(ds[n][0], ds[n][1], o.ds_rows, k + n, i);
    }
    for (int v = 0; v < kVectors; ++v) {
      Unit::template store_weights<kParts>(ds[0][v], ds[1][v], o.ds_lanes, i + v * V::kLanes, k);
    }
    Unit::step(*o.beside);
  }
  for (; k < o.ds_lanes.ld; k += 2) {
    for (int v = 0; v < kVectors; ++v) {
      Unit::template store_weights<kParts>(zero, zero, o.ds_lanes, i + v * V::kLanes, k);
    }
  }
  faintness = seen;
}

// Both for all lanes. True: something packed is faint.
template <int kParts, class Isa, class Real>
[[gnu::noinline]] bool weigh_tile(const PassOperands<Real>& o, Exponent<Real> exponent,
                                  const BackwardScratch<Real>& r) {
  constexpr int kLanes = Vec<Isa, Real>::kLanes;
  const ShiftedExp<Isa, Real> exp(exponent);
  typename MatrixUnit<Isa, Real>::Faintness faintness;
  int i = 0;
  for (; i + kLanes < o.lanes; i += 2 * kLanes) {
    const RowShift<Vec<Isa, Real>> rows[] = {load_shift<Isa>(r, i), load_shift<Isa>(r, i + kLanes)};
    weigh_rows<kParts, 2, Isa, Real>(o, rows, exp, i, faintness);
  }
  if (i < o.lanes) {
    const RowShift<Vec<Isa, Real>> row = load_shift<Isa>(r, i);
    weigh_rows<kParts, 1, Isa, Real>(o, &row, exp, i, faintness);
  }
  return kParts == kExactParts && faintness.any();
}
template <int kParts, class Isa, class Real>
[[gnu::noinline]] bool compute_and_pack_ds(const PassOperands<Real>& o, const Real* delta) {
  constexpr int kLanes = Vec<Isa, Real>::kLanes;
  typename MatrixUnit<Isa, Real>::Faintness faintness;
  int i = 0;
  for (; i + kLanes < o.lanes; i += 2 * kLanes) {
    subtract_delta<kParts, 2, Isa, Real>(o, delta, i, faintness);
  }
  if (i < o.lanes) subtract_delta<kParts, 1, Isa, Real>(o, delta, i, faintness);
  return kParts == kExactParts && faintness.any();
}

// P^T = 0 in the lanes beyond the rows, which are packed too: their logits are not numbers where a
// key holds an infinity or NaN.
template <class Isa, class Real>
[[gnu::noinline]] void clear_padding(const Tile& t, Real* p) {
  for (int k = 0; k < t.keys; ++k) {
    for (int i = t.rows; i < t.lanes; ++i) p[k * t.lanes + i] = 0;
  }
}

template <class Isa, class Real>
inline TileClass backward_tile_on_unit(Worker<Isa, Real>& w, const Tile& t,
                                       const ScoreScale<Real>& scale, int64_t key_row,
                                       const BackwardScratch<Real>& r) {
  using Unit = MatrixUnit<Isa, Real>;
  const Problem& p = w.problem;
  const TileClass tile_class = recompute_logits<Isa, Real>(w, t, scale, key_row, r);
  if (tile_class == TileClass::kHidden) return tile_class;
  const bool partial = tile_class == TileClass::kPartial;
  const bool dropped = p.dropout.enabled;
  const Real* hide = partial ? r.hide : nullptr;
  const GemmTile<Real> dp = dp_product(w, t, dp_operands<Isa, Real>(w, r, key_row), r.ds);
  const GemmTile<Real> dv = dv_product(w, t, key_row, r);
  const GemmTile<Real> dk = dk_product(w, t, key_row, r);
  GemmTile<Real> dq = dq_product(w, t, key_row, r);
  dq.right.ld = padded_depth(t.keys);
  const PackSource<Real> weights = {r.p, t.lanes, t.keys, t.rows};
  PendingProduct<Real>& pending = *r.pending;
  const PassOperands<Real> operands = {.p = r.p,
                                       .ds = r.ds,
                                       .hide = r.hide,
                                       .keep = r.extra,
                                       .cap = r.cap,
                                       .p_rows = dv.left,
                                       .ds_rows = dk.left,
                                       .ds_lanes = dq.right,
                                       .beside = &pending,
                                       .lanes = t.lanes,
                                       .keys = t.keys,
                                       .padded_keys = static_cast<int>(round_up(t.keys, 16)),
                                       .partial = partial,
                                       .dropped = dropped,
                                       .capped = scale.softcap > 0};

  bool faint_p = false;
  pending.begin(dp);
  Unit::with_parts(dv.left, [&](auto parts) {
    faint_p = weigh_tile<decltype(parts)::value, Isa, Real>(operands, scale.exponent, r);
  });
  const bool stray = t.rows < t.lanes && r.k_rows.has_hard();
  if (stray) clear_padding<Isa, Real>(t, r.p);
  if (faint_p || stray) faint_p = Unit::pack_left(weights, dv.left);
  if (t.dead) hide_weightless<Isa, Real>(p, t, r.p, r.hide);
  Unit::finish(pending);
  replace_hard_scores<Isa, Real>(dp, r.extra);
  drop_dp<Isa, Real>(p, t, r.extra, r.ds);
  if (r.sums != nullptr) add_row_sums<Isa, Real>(t, r);

  bool faint_ds = false;
  if (!dropped) pending.begin(dv);
  Unit::with_parts(dk.left, [&](auto parts) {
    faint_ds = compute_and_pack_ds<decltype(parts)::value, Isa, Real>(operands, r.delta);
  });
  if (faint_ds) {
    if (dropped) faint_p = Unit::pack_left(weights, dv.left);
    Unit::pack_left({r.ds, t.lanes, t.keys, t.rows}, dk.left);
    Unit::pack_weights({r.ds, t.lanes, t.keys, t.lanes}, dq.right);
  }
  dropped ? Unit::multiply(dv) : Unit::finish(pending);
  add_without_parts<Isa, Real>(dv, faint_p, hide, t.lanes);
  Unit::multiply(dk);
  add_without_parts<Isa, Real>(dk, faint_ds, hide, t.lanes);
  Unit::multiply(dq);
  if (dq.left.has_hard()) add_hard_left<Isa, Real>(dq, hide);
  if (faint_ds) add_faint_right<Isa, Real>(dq);
  return tile_class;
}

}  // namespace attentile::cpu
