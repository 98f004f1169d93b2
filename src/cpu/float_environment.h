// SPDX-License-Identifier: Apache-2.0
// The floating-point environment that results are computed in, whoever calls.
#pragma once

#include <cfenv>

namespace attentile::cpu {

// The default floating-point environment (round to nearest, subnormals kept, nothing trapped) for
// the lifetime of the object; then the thread gets its own back, flags and all. Results must depend
// neither on what the caller has set nor on which thread computes: pool threads inherit the
// environment of whoever started them.
class DefaultFloatEnvironment {
 public:
  DefaultFloatEnvironment() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
  DefaultFloatEnvironment& operator=(const DefaultFloatEnvironment&) = delete;
  ~DefaultFloatEnvironment() { std::fesetenv(&before_); }

 private:
  std::fenv_t before_;
};

}  // namespace attentile::cpu
