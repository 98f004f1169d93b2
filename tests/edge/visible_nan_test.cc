// SPDX-License-Identifier: Apache-2.0
// NaN and infinity in what is seen: the rows that see it are NaN and their lse too (a NaN in v: one
// column, lse as if it were not there); every other row keeps its bits. In the backward pass NaN
// may reach dq of those rows and dk, dv, dbias of the keys they see; nothing else changes.
#include <cmath>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "edge/edge.h"

namespace attentile::edge {
namespace {

// Where the bad value goes and what its rows must become.
struct Taint {
  const char* name;
  enum class Where { kQ, kK, kV, kBias, kDout, kDlse } where;
  double value;
  enum class Rows { kAllNaN, kOneColumn, kForwardUntouched } rows;
  bool overflow = false;  // q and k are finite but their product is not
};

const Taint kTaints[] = {
    {"nan_in_q", Taint::Where::kQ, kNaN, Taint::Rows::kAllNaN},
    {"nan_in_k", Taint::Where::kK, kNaN, Taint::Rows::kAllNaN},
    {"nan_in_v", Taint::Where::kV, kNaN, Taint::Rows::kOneColumn},
    {"nan_in_bias", Taint::Where::kBias, kNaN, Taint::Rows::kAllNaN},
    {"nan_in_dout", Taint::Where::kDout, kNaN, Taint::Rows::kForwardUntouched},
    {"nan_in_dlse", Taint::Where::kDlse, kNaN, Taint::Rows::kForwardUntouched},
    {"plus_infinity_in_bias", Taint::Where::kBias, kInfinity, Taint::Rows::kAllNaN},
    {"logit_overflows", Taint::Where::kQ, 1e30, Taint::Rows::kAllNaN, true},
    {"infinity_in_dout", Taint::Where::kDout, kInfinity, Taint::Rows::kForwardUntouched},
};

struct Shape {
  const char* name;
  void (*apply)(Case& c);
};

const Shape kShapes[] = {
    {"whole", [](Case&) {}},
    {"causal", [](Case& c) { c.causal = true; }},
    {"window_and_seqused",
     [](Case& c) {
       c.window_left = 20;
       c.window_right = 10;
       c.seqused_k = {60, 75};
     }},
    {"masked",
     [](Case& c) { c.mask = {true, DType::kBool, {c.batch, 1, c.seqlen_q, c.seqlen_k}}; }},
    {"dropped",
     [](Case& c) {
       c.dropout_p = 0.4;
       c.dropout_seed = 11;
     }},
    {"capped", [](Case& c) { c.softcap = 3.0; }},
};

// The tainted element: batch entry 1, query head 1 (KV head 0), query 20, key 44.
constexpr int64_t kB = 1, kH = 1, kI = 20, kJ = 44, kColumn = 3;

struct Expectation {
  Case c;
  Values values;
  std::vector<bool> row_sees;  // [batch][head][query]
  std::vector<bool> key_seen;  // [batch][kv head][key]: by a row that sees the taint

  bool row(int64_t b, int64_t h, int64_t i) const {
    return row_sees[static_cast<size_t>((b * c.num_heads_q + h) * c.seqlen_q + i)];
  }
  bool key(int64_t b, int64_t kv_head, int64_t j) const {
    return key_seen[static_cast<size_t>((b * c.num_heads_kv + kv_head) * c.seqlen_k + j)];
  }
};

bool sees_taint(const Expectation& e, const Taint& taint, int64_t b, int64_t h, int64_t i) {
  const int64_t group = e.c.num_heads_q / e.c.num_heads_kv;
  const bool sees_key = visible(e.c, e.values, b, h, i, kJ);
  switch (taint.where) {
    case Taint::Where::kQ: return b == kB && h == kH && i == kI && (!taint.overflow || sees_key);
    case Taint::Where::kDout:
    case Taint::Where::kDlse: return b == kB && h == kH && i == kI;
    case Taint::Where::kK:
    case Taint::Where::kV: return b == kB && h / group == kH / group && sees_key;
    case Taint::Where::kBias: return h == kH && i == kI && sees_key;  // the bias has no batch axis
  }
  return false;
}

void find_rows_and_keys(Expectation& e, const Taint& taint) {
  const Case& c = e.c;
  const int64_t group = c.num_heads_q / c.num_heads_kv;
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t h = 0; h < c.num_heads_q; ++h) {
      for (int64_t i = 0; i < c.seqlen_q; ++i) {
        bool any = false;
        for (int64_t j = 0; j < c.key_length(b) && !any; ++j) {
          any = visible(c, e.values, b, h, i, j);
        }
        if (!any || !sees_taint(e, taint, b, h, i)) continue;
        e.row_sees[static_cast<size_t>((b * c.num_heads_q + h) * c.seqlen_q + i)] = true;
        for (int64_t j = 0; j < c.key_length(b); ++j) {
          if (!visible(c, e.values, b, h, i, j)) continue;
          e.key_seen[static_cast<size_t>((b * c.num_heads_kv + h / group) * c.seqlen_k + j)] = true;
        }
      }
    }
  }
}

Expectation make_expectation(const Shape& shape, const Taint& taint, DType dtype) {
  Expectation e;
  e.c = base_case(dtype);
  shape.apply(e.c);
  if (taint.where == Taint::Where::kBias) {
    e.c.bias = {true, DType::kFloat32, {e.c.num_heads_q, e.c.seqlen_q, e.c.seqlen_k}};
    e.c.dbias = true;
  }
  e.c.dlse = taint.where == Taint::Where::kDlse;
  e.values = make_values(e.c);
  if (e.values.mask.present) e.values.mask.put(1.0, kB, 0, kI, kJ);
  if (taint.overflow) e.values.k.put(1e30, kB, kJ, 0, kColumn);
  e.row_sees.resize(static_cast<size_t>(e.c.batch * e.c.num_heads_q * e.c.seqlen_q));
  e.key_seen.resize(static_cast<size_t>(e.c.batch * e.c.num_heads_kv * e.c.seqlen_k));
  find_rows_and_keys(e, taint);
  return e;
}

Values tainted_values(const Expectation& e, const Taint& taint) {
  Values values = e.values;
  switch (taint.where) {
    case Taint::Where::kQ: values.q.put(taint.value, kB, kI, kH, kColumn); break;
    case Taint::Where::kK: values.k.put(taint.value, kB, kJ, 0, kColumn); break;
    case Taint::Where::kV: values.v.put(taint.value, kB, kJ, 0, kColumn); break;
    case Taint::Where::kBias: values.bias.put(taint.value, kH, kI, kJ); break;
    case Taint::Where::kDout: values.dout.put(taint.value, kB, kI, kH, kColumn); break;
    case Taint::Where::kDlse: values.dlse.put(taint.value, kB, kH, kI); break;
  }
  return values;
}

bool may_differ(const Expectation& e, const Taint& taint, const std::string& output,
                const std::vector<int64_t>& at) {
  const int64_t group = e.c.num_heads_q / e.c.num_heads_kv;
  const bool forward = taint.rows != Taint::Rows::kForwardUntouched;
  if (output == "out") {
    return forward && e.row(at[0], at[2], at[1]) &&
           (taint.rows == Taint::Rows::kAllNaN || at[3] == kColumn);
  }
  if (output == "lse") return taint.rows == Taint::Rows::kAllNaN && e.row(at[0], at[1], at[2]);
  if (output == "dq") return e.row(at[0], at[2], at[1]);
  if (output == "dk" || output == "dv") return e.key(at[0], at[2], at[1]);
  if (output == "dbias") {
    // (head, query, key), summed over the batch: keys that the tainted rows see.
    for (int64_t b = 0; b < e.c.batch; ++b) {
      if (e.key(b, at[0] / group, at[2])) return true;
    }
  }
  return false;
}

void expect_nan_rows(const Expectation& e, const Taint& taint, const Results& got) {
  if (taint.rows == Taint::Rows::kForwardUntouched) return;
  for (int64_t b = 0; b < e.c.batch; ++b) {
    for (int64_t h = 0; h < e.c.num_heads_q; ++h) {
      for (int64_t i = 0; i < e.c.seqlen_q; ++i) {
        if (!e.row(b, h, i)) continue;
        if (taint.rows == Taint::Rows::kAllNaN) {
          EXPECT_TRUE(std::isnan(got.lse.at(b, h, i))) << "lse " << b << " " << h << " " << i;
        }
        for (int64_t d = 0; d < e.c.head_dim_v; ++d) {
          if (taint.rows == Taint::Rows::kOneColumn && d != kColumn) continue;
          ASSERT_TRUE(std::isnan(got.out.at(b, i, h, d)))
              << "out " << b << " " << i << " " << h << " " << d << " is "
              << got.out.at(b, i, h, d);
        }
      }
    }
  }
}

// Of the call without its taint, which is the same for most taints.
const Results& clean_results(const Expectation& e, const char* shape, const Taint& taint,
                             const Target& target) {
  static std::map<std::tuple<std::string, DType, std::string, bool, bool, bool>, Results> known;
  const auto key = std::make_tuple(std::string(shape), e.c.dtype, name_of(target), e.c.bias.present,
                                   e.c.dlse, taint.overflow);
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  return known.emplace(key, run_call(e.c, e.values, target)).first->second;
}

class VisibleNaN : public ::testing::TestWithParam<int> {};

TEST_P(VisibleNaN, StaysInItsRows) {
  const Taint& taint = kTaints[GetParam()];
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
    if (taint.overflow && dtype == DType::kFloat64) continue;  // does not overflow there
    for (const Shape& shape : kShapes) {
      // The cap makes an infinite product finite again.
      if (taint.overflow && std::string(shape.name) == "capped") continue;
      SCOPED_TRACE(std::string(to_string(dtype)) + " " + shape.name);
      const Expectation e = make_expectation(shape, taint, dtype);
      const Values bad = tainted_values(e, taint);
      for_each_target([&](const Target& target) {
        // The reference computes in float64, where this product is finite.
        if (taint.overflow && target.algorithm == Algorithm::kReference) return;
        const Results& clean = clean_results(e, shape.name, taint, target);
        const Results got = run_call(e.c, bad, target);
        EXPECT_TRUE(
            same_bits(clean, got, [&](const std::string& output, const std::vector<int64_t>& at) {
              return may_differ(e, taint, output, at);
            }));
        expect_nan_rows(e, taint, got);
      });
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Edge, VisibleNaN,
                         ::testing::Range(0, static_cast<int>(std::size(kTaints))),
                         [](const auto& parameter) {
                           return std::string(kTaints[parameter.param].name);
                         });

}  // namespace
}  // namespace attentile::edge
