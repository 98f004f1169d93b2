// SPDX-License-Identifier: Apache-2.0
// The N(0, 1) generator: splitmix64 (Steele, Lea, Flood 2014), Box and Muller 1958, with its own
// elementary functions. sqrt is correctly rounded by IEEE 754; the project compiles without fused
// contraction, so +, -, *, / are too.
#include "cli/random_fill.h"

#include <bit>
#include <cmath>

#include "dtype.h"

namespace attentile::cli {
namespace {

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;

constexpr uint64_t splitmix64(uint64_t state) {
  uint64_t z = state + kGolden;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

constexpr uint64_t fnv1a(std::string_view text) {
  uint64_t hash = 0xCBF29CE484222325u;
  for (char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  return hash;
}

// log(x) of a normal x > 0: x = m 2^e with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh(z),
// z = (m - 1) / (m + 1), |z| < 0.172: eleven terms of the series leave less than 2^-53.
double natural_log(double x) {
  const uint64_t bits = std::bit_cast<uint64_t>(x);
  int exponent = static_cast<int>(bits >> 52) - 1023;
  double m = std::bit_cast<double>((bits & ((uint64_t{1} << 52) - 1)) | (uint64_t{1023} << 52));
  if (m > 1.4142135623730951) {
    m *= 0.5;
    ++exponent;
  }
  const double z = (m - 1.0) / (m + 1.0);
  const double z2 = z * z;
  double series = 0.0;
  for (int k = 10; k >= 0; --k) series = series * z2 + 1.0 / (2 * k + 1);
  return exponent * 0.6931471805599453 + 2.0 * z * series;
}

// Taylor polynomials for |x| <= pi / 4; sin's in x2 = x * x is to be multiplied by x.
double sine_polynomial(double x2) {
  double sum = 0.0;
  double term = 1.0;
  for (int k = 1; k <= 9; ++k) {
    sum += term;
    term *= -x2 / ((2 * k) * (2 * k + 1));
  }
  return sum;
}
double cosine_polynomial(double x2) {
  double sum = 0.0;
  double term = 1.0;
  for (int k = 1; k <= 9; ++k) {
    sum += term;
    term *= -x2 / ((2 * k - 1) * (2 * k));
  }
  return sum;
}

struct SineCosine {
  double sine;
  double cosine;
};

// Of 2 pi u, u in [0, 1): the nearest quarter turn is taken off first, exactly.
SineCosine sine_cosine_turns(double u) {
  const int quarter = static_cast<int>(4.0 * u + 0.5);
  const double x = (u - 0.25 * quarter) * 6.283185307179586;
  const double s = x * sine_polynomial(x * x);
  const double c = cosine_polynomial(x * x);
  switch (quarter % 4) {
    case 0: return {s, c};
    case 1: return {c, -s};
    case 2: return {-s, -c};
    default: return {-c, s};
  }
}

struct Pair {
  double even;
  double odd;
};

Pair normal_pair(uint64_t stream, int64_t pair) {
  const uint64_t state = stream + 2 * static_cast<uint64_t>(pair) * kGolden;
  const double u1 = static_cast<double>((splitmix64(state) >> 11) + 1) * 0x1p-53;
  const double u2 = static_cast<double>(splitmix64(state + kGolden) >> 11) * 0x1p-53;
  const double radius = std::sqrt(-2.0 * natural_log(u1));
  const SineCosine angle = sine_cosine_turns(u2);
  return {radius * angle.cosine, radius * angle.sine};
}

}  // namespace

double normal_value(uint64_t seed, std::string_view name, int64_t n) {
  const Pair pair = normal_pair(seed + fnv1a(name), n / 2);
  return n % 2 == 0 ? pair.even : pair.odd;
}

void fill_normal(const FillTarget& target, uint64_t seed, std::string_view name) {
  const uint64_t stream = seed + fnv1a(name);
  for (int64_t n = 0; n < target.num_elements; n += 2) {
    const Pair pair = normal_pair(stream, n / 2);
    store_from_double(target.data, target.dtype, n, pair.even);
    if (n + 1 < target.num_elements) store_from_double(target.data, target.dtype, n + 1, pair.odd);
  }
}

}  // namespace attentile::cli
