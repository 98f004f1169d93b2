// SPDX-License-Identifier: Apache-2.0
// The checks of c_api_c11_test.c. NULL: passed; else the text of the check that failed.
#pragma once

#ifdef __cplusplus
extern "C" {
#endif

const char* c11_forward_and_backward(void);
const char* c11_initialisers(void);
const char* c11_names(void);

#ifdef __cplusplus
}
#endif
