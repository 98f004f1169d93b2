// SPDX-License-Identifier: Apache-2.0
// The device layer: everything a kernel may use of the machine.
#pragma once

#include "cuda/device/arithmetic.h"
#include "cuda/device/async_copy.h"
#include "cuda/device/barrier.h"
#include "cuda/device/config.h"
#include "cuda/device/fragment.h"
#include "cuda/device/global_memory.h"
#include "cuda/device/index.h"
#include "cuda/device/kernel.h"
#include "cuda/device/matrix.h"
#include "cuda/device/shared_memory.h"
#include "cuda/device/swizzle.h"
#include "cuda/device/warp.h"
