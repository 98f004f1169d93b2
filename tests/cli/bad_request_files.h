// SPDX-License-Identifier: Apache-2.0
// The folder of files, good and wrong in one way each, that the bad command lines talk about.
#pragma once

#include <string>

namespace attentile::cli_test {

void make_bad_request_files(const std::string& directory);

}  // namespace attentile::cli_test
