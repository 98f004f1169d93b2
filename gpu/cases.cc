// SPDX-License-Identifier: Apache-2.0
#include "gpu/cases.h"

#include <utility>

namespace attentile::gpu {
namespace {

using conformance::Case;

Case make(const char* name, DType dtype, int64_t head_dim) {
  Case c;
  c.name = name;
  c.seed = 7;
  c.dtype = dtype;
  c.seqlen_q = 150;
  c.seqlen_k = 170;
  c.num_heads_q = 4;
  c.num_heads_kv = 2;
  c.head_dim = c.head_dim_v = head_dim;
  return c;
}

Case with_backward(Case c) {
  c.backward = true;
  return c;
}

Case sized(Case c, int64_t seqlen_q, int64_t seqlen_k) {
  c.seqlen_q = seqlen_q;
  c.seqlen_k = seqlen_k;
  return c;
}

constexpr DType kHalf = DType::kFloat16;
constexpr DType kBrain = DType::kBFloat16;

}  // namespace

std::vector<Case> short_cases() {
  std::vector<Case> cases;
  for (const int64_t d : {32, 64, 96, 128, 192, 256}) {
    Case c = make("plain", d % 64 == 0 ? kBrain : kHalf, d);
    c.name += " " + std::to_string(d);
    c.causal = true;
    cases.push_back(c);
  }
  Case padded = make("head_dim 40, 24, odd rows", kHalf, 40);
  padded.head_dim_v = 24;
  cases.push_back(padded);
  Case window = make("window", kBrain, 64);
  window.window_left = 30;
  window.window_right = 5;
  cases.push_back(window);
  Case softcap = make("softcap", kHalf, 64);
  softcap.softcap = 20;
  cases.push_back(softcap);
  Case bias = make("bias", kBrain, 64);
  bias.bias = {true, DType::kFloat32, {1, 4, 150, 170}};
  cases.push_back(bias);
  Case mask = make("mask", kHalf, 128);
  mask.mask = {true, DType::kUInt8, {1, 1, 150, 170}};
  cases.push_back(mask);
  Case alibi = make("alibi, sink", kBrain, 128);
  alibi.alibi_rank = 1;
  alibi.sink = true;
  cases.push_back(alibi);
  Case dropout = make("dropout", kHalf, 64);
  dropout.dropout_p = 0.2;
  dropout.dropout_seed = 11;
  cases.push_back(dropout);
  Case packed = make("packed", kBrain, 64);
  packed.varlen = true;
  packed.batch = 3;
  packed.lengths_q = {100, 0, 50};
  packed.lengths_k = {60, 40, 70};
  packed.seqlen_q = 100;
  packed.seqlen_k = 70;
  packed.causal = true;
  cases.push_back(packed);
  cases.push_back(sized(make("few queries", kBrain, 128), 2, 700));
  cases.push_back(make("float32", DType::kFloat32, 64));
  cases.push_back(make("float32 wide", DType::kFloat32, 256));
  const size_t forward_only = cases.size();
  for (size_t n = 0; n < forward_only; ++n) {
    Case c = with_backward(cases[n]);
    c.name += ", backward";
    cases.push_back(std::move(c));
  }
  return cases;
}

std::vector<Case> repeated_cases() {
  std::vector<Case> cases;
  Case causal = with_backward(sized(make("causal 64", kBrain, 64), 512, 512));
  causal.causal = true;
  cases.push_back(causal);
  cases.push_back(with_backward(sized(make("full 128", kHalf, 128), 300, 700)));
  Case dropout = with_backward(sized(make("dropout 64", kHalf, 64), 256, 256));
  dropout.dropout_p = 0.1;
  dropout.dropout_seed = 5;
  cases.push_back(dropout);
  cases.push_back(sized(make("decode 128", kBrain, 128), 1, 4096));
  cases.push_back(with_backward(sized(make("float32 128", DType::kFloat32, 128), 200, 300)));
  return cases;
}

std::vector<Case> wide_cases() {
  std::vector<Case> cases = {sized(make("decode 64", kBrain, 64), 1, 64),
                             sized(make("forward 64", kBrain, 64), 256, 256),
                             with_backward(sized(make("backward 128", kHalf, 128), 128, 128))};
  for (Case& c : cases) {
    c.num_heads_q = c.num_heads_kv = 2;
    c.causal = true;
  }
  return cases;
}

std::vector<Case> profiled_cases() {
  std::vector<Case> cases;
  for (const int64_t d : {64, 128}) {
    Case c = with_backward(sized(make("profile", kBrain, d), 4096, 4096));
    c.name += " " + std::to_string(d);
    c.num_heads_q = c.num_heads_kv = 2048 / d;
    c.batch = 2;
    c.causal = true;
    cases.push_back(std::move(c));
  }
  return cases;
}

}  // namespace attentile::gpu
