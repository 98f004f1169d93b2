// SPDX-License-Identifier: Apache-2.0
// What the forward kernel is made of: the band in 32 bits, its own logarithm and tanh, and
// what is refused by name.
#include <cmath>

#include "conformance/call.h"
#include "conformance/call_testing.h"
#include "cuda/emulator/forward.h"
#include "cuda/emulator_entry.h"
#include "cuda/forward_kernels.h"
#include "cuda/make_params.h"
#include "cuda/numerics.h"
#include "cuda/sm80/gradient_scores.h"
#include "cuda/sm80/special_values.h"
#include "cuda/support.h"
#include "dtype.h"
#include "validate.h"

namespace attentile::cuda::test {
namespace {

using conformance::Case;
using conformance::Values;

struct WeightWords {
  const uint32_t* in;
  uint32_t* out;
  uint32_t count;
  ScoreParams score;
};

// Every element of 16 bits, in either half of a register, beside one that is finite and one that is
// not.
template <class T>
void expect_split_by_definition(DType dtype) {
  const auto mark_of = [](double value) {
    if (std::isnan(value)) return kNanMark;
    if (!std::isinf(value)) return 0.0f;
    return value > 0 ? 1.0f : kMinusInfinityMark;
  };
  const auto value_of = [&](uint32_t bits) {
    const auto word = static_cast<uint16_t>(bits);
    return static_cast<double>(dtype == DType::kFloat16 ? float16_to_float(word)
                                                        : bfloat16_to_float(word));
  };
  const uint32_t infinity = dtype == DType::kFloat16 ? 0x7C00 : 0x7F80;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    for (const uint32_t other : {0x8123u, infinity | 0x8000u}) {
      for (const uint32_t pair : {bits | other << 16, other | bits << 16}) {
        const SplitValues split = split_values<T>(pair);
        for (const int half : {0, 16}) {
          const uint32_t element = pair >> half & 0xFFFF;
          const double value = value_of(element);
          ASSERT_EQ(split.finite >> half & 0xFFFF, std::isfinite(value) ? element : 0) << element;
          ASSERT_EQ(value_of(split.marks >> half & 0xFFFF), mark_of(value)) << element;
          const uint32_t marks = mark_weights<T>(pair, half == 0, half != 0);
          ASSERT_EQ(value_of(marks >> half & 0xFFFF), value == 0 ? kNanMark : 1) << element;
          ASSERT_EQ(marks >> (16 - half) & 0xFFFF, 0u) << element;
        }
      }
    }
  }
}

TEST(SpecialValues, AreSplitByDefinition) {
  expect_split_by_definition<Float16>(DType::kFloat16);
  expect_split_by_definition<BFloat16>(DType::kBFloat16);
}

TEST(NarrowBand, IsTheBand) {
  constexpr int64_t kFar = int64_t{1} << 62;
  for (const int64_t offset : {int64_t{-9}, int64_t{0}, int64_t{4}, kFar, -kFar}) {
    for (const int64_t left : {int64_t{-1}, int64_t{0}, int64_t{3}, kFar}) {
      for (const int64_t right : {int64_t{-1}, int64_t{0}, int64_t{2}, kFar}) {
        const BandMask band = {
            .seqlen_k = 12, .offset = offset, .window_left = left, .window_right = right};
        const NarrowBand narrowed = narrow(band);
        for (int32_t i = 0; i < 20; ++i) {
          EXPECT_EQ(narrowed.lo(i), band.lo(i));
          EXPECT_EQ(narrowed.hi(i), band.hi(i));
          for (int32_t k = -4; k < 16; k += 2) {
            EXPECT_EQ(narrowed.classify(i, i + 5, k, k + 4), band.classify(i, i + 5, k, k + 4));
          }
        }
      }
    }
  }
}

TEST(Numerics, AreAccurate) {
  double worst_log = 0;
  for (double x = 0.5; x < 1e9; x *= 1.0007) {
    const float f = static_cast<float>(x);
    const double exact = std::log(static_cast<double>(f));
    const double ulp = std::nextafter(static_cast<float>(exact), 1e9f) - static_cast<float>(exact);
    worst_log = std::max(worst_log, std::fabs(log_rn(f) - exact) / std::max(ulp, 1e-9));
  }
  EXPECT_LT(worst_log, 2.0);
  EXPECT_EQ(log_rn(1.0f), 0.0f);
  EXPECT_TRUE(std::isnan(log_rn(NAN)));
  EXPECT_EQ(log_rn(INFINITY), INFINITY);
  for (int n = 0; n < 40; ++n) {
    EXPECT_EQ(log_rn(std::ldexp(1.0f, n)), static_cast<float>(n * std::log(2.0))) << n;
    EXPECT_EQ(reciprocal(std::ldexp(1.0f, n)), std::ldexp(1.0f, -n));
  }
}

// A lane's sums are of the products as they are, to more digits than a float has.
TEST(Numerics, SumsOfFloat32KeepWhatTheyRound) {
  RowSum<float> products, numbers;
  double of_products = 0, of_numbers = 0;
  for (int i = 0; i < 200; ++i) {
    const float weight = static_cast<float>(1.0 / (3 + i)), x = static_cast<float>(std::sin(i));
    products.add_product(weight, x);
    numbers.add(x);
    of_products += static_cast<double>(weight) * static_cast<double>(x);
    of_numbers += static_cast<double>(x);
  }
  products.add_product(0.0f, NAN);  // hidden
  const auto kept = [](const RowSum<float>& row) {
    return static_cast<double>(row.sum) + static_cast<double>(row.lost);
  };
  EXPECT_NEAR(kept(products), of_products, 1e-12);
  EXPECT_NEAR(kept(numbers), of_numbers, 1e-12);
}

void tanh_of_words(const Words& words, SharedAddress) {
  for (uint32_t i = thread_idx(); i < static_cast<uint32_t>(words.argument); i += 32) {
    const float x = std::bit_cast<float>(ld_global(words.in + i));
    st_global(words.out + i, std::bit_cast<uint32_t>(tanh_rn(x)));
  }
}

TEST(Numerics, Tanh) {
  std::vector<uint32_t> input;
  for (const float x : {INFINITY, -INFINITY, NAN}) input.push_back(std::bit_cast<uint32_t>(x));
  for (float x = 1e-30f; x < 100; x *= 1.01f) {
    input.push_back(std::bit_cast<uint32_t>(x));
    input.push_back(std::bit_cast<uint32_t>(-x));
  }
  const int count = static_cast<int>(input.size());
  OneBlock<32, tanh_of_words> block(input, {}, count, input.size());
  clean(block);
  EXPECT_EQ(std::bit_cast<float>(block.out[0]), 1.0f);
  EXPECT_EQ(std::bit_cast<float>(block.out[1]), -1.0f);
  EXPECT_TRUE(std::isnan(std::bit_cast<float>(block.out[2])));
  for (size_t i = 3; i < input.size(); ++i) {
    const double exact = std::tanh(static_cast<double>(std::bit_cast<float>(input[i])));
    EXPECT_LE(std::fabs(std::bit_cast<float>(block.out[i]) - exact), 1e-6 * std::fabs(exact));
  }
}

// (score, lse) in, the weight of float32 out.
void weights_of_words(const WeightWords& words, SharedAddress) {
  for (uint32_t i = thread_idx(); i < words.count; i += 32) {
    const auto at = [&](uint32_t n) { return std::bit_cast<float>(ld_global(words.in + n)); };
    const float weight = weight_of(words.score, at(2 * i), at(2 * i + 1), 0.0f, 1.0f);
    st_global(words.out + i, std::bit_cast<uint32_t>(weight));
  }
}

// The same of 16 bits, which have no such need of digits.
void weights16_of_words(const WeightWords& words, SharedAddress) {
  for (uint32_t i = thread_idx(); i < words.count; i += 32) {
    const auto at = [&](uint32_t n) { return std::bit_cast<float>(ld_global(words.in + n)); };
    const float weight = weight_of(words.score, at(2 * i), at(2 * i + 1));
    st_global(words.out + i, std::bit_cast<uint32_t>(weight));
  }
}

// Whatever an lse says that cannot be its row's.
TEST(Numerics, WeightsAreAtMostOne) {
  const std::vector<float> in = {1.0f, 1.0f, 1.0f, 0.99f, 1.0f, -5.0f, 3e38f, -3e38f};
  Device device;
  Buffer<uint32_t> given(device, in.size());
  for (size_t i = 0; i < in.size(); ++i) given[i] = std::bit_cast<uint32_t>(in[i]);
  Buffer<uint32_t> out(device, in.size() / 2);
  ScoreParams score;
  score.value_hi = 1.0f;
  const WeightWords words = {given.data(), out.data(), 4, score};
  for (const bool of_16_bits : {false, true}) {
    const Report report =
        of_16_bits ? device.launch<Kernel<32, WeightWords, weights16_of_words>>({1}, 0, words)
                   : device.launch<Kernel<32, WeightWords, weights_of_words>>({1}, 0, words);
    EXPECT_TRUE(report.clean()) << report.text();
    for (size_t i = 0; i < 4; ++i) EXPECT_EQ(std::bit_cast<float>(out[i]), 1.0f) << i;
  }
}

// A large lse has few digits below 1, but its difference from a logit is known to more.
TEST(Numerics, WeightsOfFloat32KeepWhatALargeLseLoses) {
  for (const double scale : {0.125, 1 / std::sqrt(128.0), 1 / std::sqrt(32.0)}) {
    ScoreParams score;
    score.value_hi = static_cast<float>(scale);
    score.value_lo = static_cast<float>(scale - static_cast<double>(score.value_hi));
    std::vector<float> in;
    for (const double size : {1.0, 100.0, 1e4, -1e4}) {
      for (double below = 0; below < 40; below += 0.37) {
        in.push_back(static_cast<float>((size - below) / scale));
        in.push_back(static_cast<float>(size));
      }
    }
    in.insert(in.end(), {-INFINITY, 1.0f, 3.0f, INFINITY, 3e38f, 1.0f, -3e38f, 1.0f, NAN, 1.0f});
    Device device;
    const uint32_t count = static_cast<uint32_t>(in.size() / 2);
    Buffer<uint32_t> given(device, in.size());
    for (size_t i = 0; i < in.size(); ++i) given[i] = std::bit_cast<uint32_t>(in[i]);
    Buffer<uint32_t> out(device, count);
    const Report report = device.launch<Kernel<32, WeightWords, weights_of_words>>(
        {1}, 0, {given.data(), out.data(), count, score});
    EXPECT_TRUE(report.clean()) << report.text();
    const auto got = [&](size_t i) { return std::bit_cast<float>(out[i]); };
    for (size_t i = 0; i + 5 < count; ++i) {
      const double below = static_cast<double>(in[2 * i + 1]) - in[2 * i] * scale;
      const double exact = std::exp(-std::max(below, 0.0));
      EXPECT_LE(std::fabs(got(i) - exact), 4e-7 * exact) << in[2 * i] << " " << in[2 * i + 1];
    }
    EXPECT_EQ(got(count - 5), 0.0f);
    EXPECT_EQ(got(count - 4), 0.0f);
    EXPECT_EQ(got(count - 3), 1.0f);
    EXPECT_EQ(got(count - 2), 0.0f);
    EXPECT_TRUE(std::isnan(got(count - 1)));
  }
}

TEST(Forward, RefusesByName) {
  const auto refusal = [](void (*change)(Case&)) {
    Case c = conformance::base_case(DType::kBFloat16);
    c.backward = false;
    change(c);
    const Values values = make_values(c);
    conformance::PlacedCall call(c, values, empty_results(c, values), 1);
    const Status status = emulate_forward(call.inputs(), call.outputs(), options_of(c), {});
    EXPECT_EQ(status.code(), StatusCode::kUnsupported);
    return status.message();
  };
  EXPECT_EQ(refusal([](Case& c) { c.dtype = DType::kFloat64; }),
            "q: is float64, but the CUDA kernels take float16, bfloat16 and float32");
  EXPECT_EQ(refusal([](Case& c) { c.head_dim_v = 257; }),
            "head_dim: is 20 and head_dim_v 257, but the CUDA kernels take at most 256");
  EXPECT_EQ(refusal([](Case& c) {
              c.block_mask_heads = 1;
              c.block_size_q = c.block_size_k = 16;
            }),
            "block_mask: is given, but the CUDA kernels have no block patterns");
}

// head_dim 96 has a kernel with options and one without, whose warps share a tile in another way.
TEST(Forward, BothKernelsOfAClassGiveTheSameBits) {
  Case c = conformance::base_case(DType::kFloat16);
  c.backward = false;
  c.causal = true;
  c.batch = 1;
  c.seqlen_q = 150;
  c.seqlen_k = 170;
  c.head_dim = c.head_dim_v = 90;
  const Values values = make_values(c);
  const auto results = [&]<class Kernel>() {
    conformance::PlacedCall call(c, values, empty_results(c, values), 1);
    const Result<Problem> problem =
        validate_forward(call.inputs(), call.outputs(), options_of(c), Check::kCall);
    Device device;
    register_call(device, call.inputs(), call.outputs());
    const ForwardParams params = make_forward_params(*problem);
    const uint32_t blocks = static_cast<uint32_t>(Kernel::blocks(params));
    const Report report = device.launch<Kernel>({blocks}, Kernel::kSharedBytes, params);
    EXPECT_TRUE(report.clean()) << report.text();
    return call.results();
  };
  EXPECT_TRUE(conformance::same_bits(results.operator()<Forward<Float16, 96, true>>(),
                                     results.operator()<Forward<Float16, 96, false>>()));
}

}  // namespace
}  // namespace attentile::cuda::test
