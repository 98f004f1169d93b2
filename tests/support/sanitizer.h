// SPDX-License-Identifier: Apache-2.0
// ATTENTILE_TEST_TSAN: compiled for ThreadSanitizer, whose operator new cannot be replaced.
#pragma once

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define ATTENTILE_TEST_TSAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define ATTENTILE_TEST_TSAN 1
#endif
