// SPDX-License-Identifier: Apache-2.0
// BackwardParams: what the kernels of the backward pass see of a Problem.
#pragma once

#include "cuda/params.h"

namespace attentile::cuda {

struct BackwardParams {
  ForwardParams call;            // the forward call whose gradients are wanted
  ArrayParams dout, dq, dk, dv;  // (batch, row, head, column)
  ArrayParams dlse;              // (batch, head, row, -), float32
  ArrayParams dbias;             // (batch, head, query, key)
  ArrayParams dsink;             // (head, -, -, -), float32
};

}  // namespace attentile::cuda
