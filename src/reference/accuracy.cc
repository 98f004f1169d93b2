// SPDX-License-Identifier: Apache-2.0
// The accuracy rule; see accuracy.h.
#include "reference/accuracy.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "dtype.h"
#include "reference/rounded_standard.h"

namespace attentile::reference {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

enum class Kind { kForward, kGradient };
enum class Rule { kBound, kBitwise, kOneUlp };

// One output and everything it is compared with.
struct Comparison {
  const char* name;
  const Array4* got;
  const ExactArray* exact;
  const ExactArray* standard;
  Kind kind;
  Rule rule;
};

// Distance from |value| to the next number of the dtype.
double ulp(DType dtype, double value) {
  int fraction_bits = 52;
  int min_exponent = -1022;
  if (dtype != DType::kFloat64) min_exponent = dtype == DType::kFloat16 ? -14 : -126;
  if (dtype == DType::kFloat32) fraction_bits = 23;
  if (dtype == DType::kFloat16) fraction_bits = 10;
  if (dtype == DType::kBFloat16) fraction_bits = 7;
  const double magnitude = std::fabs(value);
  const int exponent = magnitude > 0 ? std::ilogb(magnitude) : min_exponent;
  return std::ldexp(1.0, std::max(exponent, min_exponent) - fraction_bits);
}

double ceiling_of(DType dtype, Kind kind) {
  const double factor = kind == Kind::kGradient ? 4 : 1;
  switch (dtype) {
    case DType::kFloat32: return factor * 1e-5;
    case DType::kFloat16: return factor * 2e-3;
    case DType::kBFloat16: return factor * 1.6e-2;
    default: return 0;
  }
}

// A weight below exp(-200) times any value stands for a zero in the exact tier.
double flushed(double value) {
  return std::fabs(value) < 0x1p-200 ? 0.0 : value;
}

class Judge {
 public:
  Judge(const Comparison& comparison, DType problem_dtype, bool normal_inputs)
      : c_(comparison), dtype_(comparison.got->dtype), problem_dtype_(problem_dtype) {
    verdict_.name = c_.name;
    verdict_.elements = c_.exact->size();
    for (int64_t at = 0; at < verdict_.elements; ++at) measure(at);
    if (!normal_inputs || c_.rule != Rule::kBound) return;
    verdict_.ceiling = ceiling_of(problem_dtype_, c_.kind) * verdict_.max_reference;
  }

  Verdict run() {
    int64_t at = 0;
    const int64_t* shape = c_.exact->shape;
    double worst_ratio = -1;
    for (int64_t a = 0; a < shape[0]; ++a) {
      for (int64_t b = 0; b < shape[1]; ++b) {
        for (int64_t c = 0; c < shape[2]; ++c) {
          for (int64_t d = 0; d < shape[3]; ++d, ++at) {
            const double ratio = judge(at, load_as_double(c_.got->at(a, b, c, d), dtype_, 0));
            if (ratio <= worst_ratio) continue;
            worst_ratio = ratio;
            const int64_t index[4] = {a, b, c, d};
            std::copy(index, index + 4, verdict_.worst);
          }
        }
      }
    }
    if (verdict_.elements > 0) describe_worst();
    return verdict_;
  }

 private:
  void measure(int64_t at) {
    const double exact = c_.exact->value[static_cast<size_t>(at)];
    if (!std::isfinite(exact)) return;
    verdict_.max_reference = std::max(verdict_.max_reference, std::fabs(exact));
    const double standard = c_.standard->value[static_cast<size_t>(at)];
    if (!std::isfinite(standard)) return;  // the yardstick overflowed here: it allows nothing
    verdict_.standard_error = std::max(verdict_.standard_error, std::fabs(standard - exact));
  }

  double allowed_error(int64_t at) const {
    if (c_.rule == Rule::kOneUlp) return ulp(dtype_, c_.exact->value[static_cast<size_t>(at)]);
    if (c_.rule == Rule::kBitwise) return 0;
    const double unit = problem_dtype_ == DType::kFloat64 ? 0x1p-53 : 0x1p-24;
    const double factor = c_.kind == Kind::kForward ? 2 : 3;
    const double condition = c_.exact->condition[static_cast<size_t>(at)];
    const double floor = std::max(std::isfinite(condition) ? 4 * unit * condition : 0,
                                  ulp(dtype_, verdict_.max_reference));
    const double allowed = factor * verdict_.standard_error + floor;
    return verdict_.ceiling > 0 ? std::min(allowed, verdict_.ceiling) : allowed;
  }

  // Error over allowed error; above 1 fails. Infinite for a NaN or infinity in the wrong place.
  double judge(int64_t at, double got) {
    double exact = c_.exact->value[static_cast<size_t>(at)];
    if (c_.rule == Rule::kOneUlp) exact = round_to(dtype_, exact);
    if (c_.rule == Rule::kBitwise) {
      exact = flushed(round_to(dtype_, exact));
      got = flushed(got);
    }
    if (std::isnan(exact) || std::isnan(got)) {
      const bool may_spread =
          c_.kind == Kind::kGradient && std::isnan(c_.exact->condition[static_cast<size_t>(at)]);
      const bool right = may_spread || (std::isnan(exact) && std::isnan(got));
      zeros_would_pass_ = zeros_would_pass_ && may_spread;
      return right ? 0 : failure(kInfinity);
    }
    const double rounded = round_to(dtype_, exact);
    if (!std::isfinite(rounded) && got == rounded) {
      zeros_would_pass_ = false;
      return 0;
    }
    const double error = std::fabs(got - exact);
    if (!std::isfinite(error)) return failure(kInfinity);
    verdict_.max_error = std::max(verdict_.max_error, error);
    const double allowed = allowed_error(at);
    zeros_would_pass_ = zeros_would_pass_ && std::fabs(exact) <= allowed;
    if (error == 0) return 0;
    if (error > allowed) return failure(allowed > 0 ? error / allowed : kMaxRatio);
    return error / allowed;
  }

  double failure(double ratio) {
    ++verdict_.failures;
    if (ratio == kInfinity) verdict_.max_error = kInfinity;
    return ratio;
  }

  void describe_worst() {
    Verdict& v = verdict_;
    const int64_t at = c_.exact->index(v.worst[0], v.worst[1], v.worst[2], v.worst[3]);
    v.expected = c_.exact->value[static_cast<size_t>(at)];
    v.got = load_as_double(c_.got->at(v.worst[0], v.worst[1], v.worst[2], v.worst[3]), dtype_, 0);
    v.allowed = allowed_error(at);
    v.passed = v.failures == 0;
    v.mistrusted = zeros_would_pass_ && v.max_reference > 0;
    char text[256];
    if (!v.passed) {
      std::snprintf(
          text, sizeof text,
          "%s[%lld,%lld,%lld,%lld] is %.17g, expected %.17g within %.3g (%lld of %lld fail)",
          c_.name, static_cast<long long>(v.worst[0]), static_cast<long long>(v.worst[1]),
          static_cast<long long>(v.worst[2]), static_cast<long long>(v.worst[3]), v.got, v.expected,
          v.allowed, static_cast<long long>(v.failures), static_cast<long long>(v.elements));
      v.reason = text;
    } else if (v.mistrusted) {
      std::snprintf(text, sizeof text,
                    "%s: zeros would pass too (largest value %.3g, allowed error %.3g)", c_.name,
                    v.max_reference, v.allowed);
      v.reason = text;
    }
  }

  static constexpr double kMaxRatio = std::numeric_limits<double>::max();
  const Comparison c_;
  const DType dtype_;
  const DType problem_dtype_;
  bool zeros_would_pass_ = true;
  Verdict verdict_;
};

std::vector<Verdict> judge_all(const std::vector<Comparison>& comparisons, const Problem& problem,
                               const AccuracyOptions& options) {
  std::vector<Verdict> verdicts;
  for (const Comparison& comparison : comparisons) {
    if (!comparison.got->present || !comparison.exact->present) continue;
    verdicts.push_back(Judge(comparison, problem.dtype, options.normal_inputs).run());
    if (verdicts.back().elements == 0) verdicts.back().passed = true;
  }
  return verdicts;
}

}  // namespace

std::vector<Verdict> check_forward(const Problem& problem, const ExactResult& exact,
                                   const ExactResult& standard, const AccuracyOptions& options) {
  const bool bits = options.tier == Tier::kExact;
  return judge_all({{"out", &problem.out, &exact.out, &standard.out, Kind::kForward,
                     bits ? Rule::kBitwise : Rule::kBound},
                    {"lse", &problem.lse, &exact.lse, &standard.lse, Kind::kForward,
                     bits ? Rule::kOneUlp : Rule::kBound}},
                   problem, options);
}

std::vector<Verdict> check_backward(const Problem& problem, const ExactResult& exact,
                                    const ExactResult& standard, const AccuracyOptions& options) {
  const auto gradient = [](const char* name, const Array4* got, const ExactArray* right,
                           const ExactArray* rounded, Rule rule = Rule::kBound) {
    return Comparison{name, got, right, rounded, Kind::kGradient, rule};
  };
  const Rule dv_rule = options.tier == Tier::kExact ? Rule::kBitwise : Rule::kBound;
  return judge_all({gradient("dq", &problem.dq, &exact.dq, &standard.dq),
                    gradient("dk", &problem.dk, &exact.dk, &standard.dk),
                    gradient("dv", &problem.dv, &exact.dv, &standard.dv, dv_rule),
                    gradient("dbias", &problem.dbias, &exact.dbias, &standard.dbias),
                    gradient("dsink", &problem.dsink, &exact.dsink, &standard.dsink)},
                   problem, options);
}

Result<std::vector<Verdict>> check(const Problem& problem, const ExecutionContext& context,
                                   const AccuracyOptions& options) {
  ExactResult exact;
  ExactResult standard;
  Status status = compute_exact(problem, context, &exact);
  if (status.ok()) status = compute_standard(problem, context, &standard);
  if (!status.ok()) return status;
  return problem.backward ? check_backward(problem, exact, standard, options)
                          : check_forward(problem, exact, standard, options);
}

bool all_pass(const std::vector<Verdict>& verdicts) {
  return std::all_of(verdicts.begin(), verdicts.end(),
                     [](const Verdict& v) { return v.passed && !v.mistrusted; });
}

std::string verdict_heading() {
  return "output    elements  largest value  max error  standard's    allowed  verdict";
}

std::string to_text(const Verdict& v) {
  char text[160];
  const char* word = v.elements == 0 ? "empty" : (v.passed ? "pass" : "FAIL");
  std::snprintf(text, sizeof text, "%-7s %10lld  %13.4g  %9.3g  %10.3g  %9.3g  %s", v.name.c_str(),
                static_cast<long long>(v.elements), v.max_reference, v.max_error, v.standard_error,
                v.allowed, v.passed && v.mistrusted ? "MISTRUSTED" : word);
  std::string line = text;
  if (!v.reason.empty()) line += ": " + v.reason;
  return line;
}

}  // namespace attentile::reference
