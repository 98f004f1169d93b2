// SPDX-License-Identifier: Apache-2.0
// A row's bits do not depend on the rows that share its panel: not when one of them meets a far
// larger logit in a later tile, not when its lse is large or NaN. And weights that are equal and a
// power of two in number are exact whatever the logit.
#include <cmath>
#include <string>
#include <vector>

#include "edge/edge.h"

namespace attentile::edge {
namespace {

// Query row kRow of (0, 0) is the one that changes: it may differ, and dk, dv, dbias with it.
constexpr int64_t kRow = 5;

bool of_the_row(const std::string& output, const std::vector<int64_t>& at) {
  if (output == "out" || output == "dq") return at[0] == 0 && at[1] == kRow && at[2] == 0;
  if (output == "lse") return at[0] == 0 && at[1] == 0 && at[2] == kRow;
  return true;
}

// The logits of one row climb by 30 every 24 keys, those of the others by next to nothing.
TEST(Neighbours, OfARowWhoseLogitsClimb) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
    SCOPED_TRACE(to_string(dtype));
    Case c = base_case(dtype);
    c.seqlen_k = 300;
    c.softmax_scale = 1.0;
    Values values = make_values(c);
    for (int64_t i = 0; i < values.q.count(); ++i) values.q.set(i, 0.25 * values.q.get(i));
    for (int64_t i = 0; i < c.seqlen_q; ++i) values.q.put(0.0, 0, i, 0, 0);
    for (int64_t j = 0; j < c.seqlen_k; ++j) {
      values.k.put(static_cast<double>(j / 24), 0, j, 0, 0);
    }
    for_each_target([&](const Target& target) {
      const Results calm = run_call(c, values, target);
      for (double value : {30.0, kNaN}) {
        SCOPED_TRACE(value);
        Values other = values;
        other.q.put(value, 0, kRow, 0, 0);
        EXPECT_TRUE(same_bits(calm, run_call(c, other, target), of_the_row));
      }
    });
  }
}

// The float nearest below which float(x + log(keys)) turns from 16 to the next float: the lse of
// equal logits x is above 16 by almost half a unit, and rounds to 16.
float logit_for_lse_just_above_16(int64_t keys) {
  const double rest = std::log(static_cast<double>(keys));
  float x = static_cast<float>(16.0 - rest);
  while (static_cast<double>(x) + rest > 16.0 + 0x1p-20) x = std::nextafter(x, -100.0f);
  while (static_cast<double>(std::nextafter(x, 100.0f)) + rest < 16.0 + 0x1p-20) {
    x = std::nextafter(x, 100.0f);
  }
  return x;
}

TEST(Neighbours, OfARowWithALargeOrNaNLse) {
  int found = 0;
  for (int64_t keys = 66; keys < 90; ++keys) {
    const float logit = logit_for_lse_just_above_16(keys);
    // Far enough from both ends for the difference to show in dq.
    if (static_cast<double>(logit) + std::log(static_cast<double>(keys)) < 16.0 + 5e-7) continue;
    ++found;
    SCOPED_TRACE(keys);
    Case c = base_case(DType::kFloat32);
    c.seqlen_k = keys;
    c.bias = {true, DType::kFloat32, {c.seqlen_q, 1}};
    Values values = make_values(c);
    values.q.fill(0.0);
    values.bias.fill(static_cast<double>(logit));
    const auto with_bias = [&](double value, const Target& target) {
      Values changed = values;
      changed.bias.put(value, kRow, 0);
      return run_call(c, changed, target);
    };
    // The bias has no batch and head axes: kRow of all of them changes.
    const auto of_all_rows = [](const std::string& output, const std::vector<int64_t>& at) {
      if (output == "out" || output == "dq") return at[1] == kRow;
      return output != "lse" || at[2] == kRow;
    };
    for_each_target([&](const Target& target) {
      const Results small = with_bias(0.5, target);
      ASSERT_EQ(small.lse.at(0, 0, kRow + 1), 16.0);
      EXPECT_TRUE(same_bits(small, with_bias(kNaN, target), of_all_rows)) << "NaN";
      EXPECT_TRUE(same_bits(small, with_bias(300.0, target), of_all_rows)) << "large";
      EXPECT_TRUE(same_bits(small, with_bias(-300.0, target), of_all_rows)) << "large, negative";
    });
  }
  EXPECT_GE(found, 3);
}

// Row i sees the 2^(i % 7) keys from i on, all with the same logit, which is not 0.
TEST(EqualWeights, AreExactForAnyLogit) {
  for (double logit : {0.6875, 3.3125, 11.625, 47.5, -37.25, -211.0}) {
    for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64}) {
      SCOPED_TRACE(std::string(to_string(dtype)) + " " + std::to_string(logit));
      Case c = base_case(dtype);
      c.tier = Tier::kEqual;
      c.seqlen_k = 110;
      c.softmax_scale = 1.0;
      c.mask = {true, DType::kBool, {c.batch, c.num_heads_q, c.seqlen_q, c.seqlen_k}};
      Values values = make_values(c);
      values.q.fill(0.0);
      values.mask.fill(0.0);
      for (int64_t b = 0; b < c.batch; ++b) {
        for (int64_t j = 0; j < c.seqlen_k; ++j) {
          for (int64_t h = 0; h < c.num_heads_kv; ++h) values.k.put(logit, b, j, h, 0);
        }
        for (int64_t h = 0; h < c.num_heads_q; ++h) {
          for (int64_t i = 0; i < c.seqlen_q; ++i) {
            values.q.put(1.0, b, i, h, 0);
            for (int64_t n = 0; n < int64_t{1} << (i % 7); ++n) {
              values.mask.put(1.0, b, h, i, i + n);
            }
          }
        }
      }
      for_each_target([&](const Target& target) {
        EXPECT_TRUE(accurate(c, values, run_call(c, values, target)));
      });
    }
  }
}

// Where every pair has an element of its own in dbias, the main pass writes it; a length that says
// what is so anyway takes the separate pass, which adds up what shares an element.
TEST(Dbias, OfTheMainPassHasTheBitsOfTheSeparateOne) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
    for (DType of_bias : {dtype, DType::kFloat32}) {
      Case c = base_case(dtype);
      c.seqlen_q = 75;
      c.seqlen_k = 131;
      c.bias = {true, of_bias, {c.batch, c.num_heads_q, c.seqlen_q, c.seqlen_k}};
      c.mask = {true, DType::kBool, {c.batch, 1, c.seqlen_q, c.seqlen_k}};
      c.backward = c.dbias = true;
      Case with_lengths = c;
      with_lengths.seqused_k.assign(static_cast<size_t>(c.batch), static_cast<int32_t>(131));
      const Values values = make_values(c);
      Values longer = values;
      longer.seqused_k = make_values(with_lengths).seqused_k;
      for_each_target([&](const Target& target) {
        const Results separate = run_call(with_lengths, longer, target);
        ASSERT_TRUE(separate.dbias.present);
        EXPECT_FALSE(all_zero(separate.dbias));
        EXPECT_TRUE(same_bits(separate, run_call(c, values, target)));
      });
    }
  }
}

}  // namespace
}  // namespace attentile::edge
