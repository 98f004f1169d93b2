// SPDX-License-Identifier: Apache-2.0
// One bad command line and the sentence that refuses it; the tables are in bad_*_test.cc.
#pragma once

#include <gtest/gtest.h>

#include <ostream>
#include <string>

#include "cli/cli_process.h"

namespace attentile::cli_test {

struct BadRequest {
  const char* name;
  const char* line;      // "@" first: a good attend command, then what makes it wrong
  const char* sentence;  // {dir}: the test's folder
};

inline void PrintTo(const BadRequest& request, std::ostream* stream) {
  *stream << "attentile " << request.line;
}

inline std::string bad_request_name(const ::testing::TestParamInfo<BadRequest>& info) {
  return info.param.name;
}

class BadRequestTest : public CliTest, public ::testing::WithParamInterface<BadRequest> {
 protected:
  void SetUp() override;
};

}  // namespace attentile::cli_test
