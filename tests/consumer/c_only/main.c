// SPDX-License-Identifier: Apache-2.0
// The least that a user writes in C.
#include <attentile/c_api.h>
#include <attentile/version.h>
#include <stdio.h>
#include <string.h>

int main(void) {
  printf("%s\n", attentile_version());
  return strcmp(attentile_version(), ATTENTILE_VERSION) == 0 ? 0 : 1;
}
