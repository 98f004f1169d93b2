// SPDX-License-Identifier: Apache-2.0
// The emulator as the device layer sees it: one function per instruction, called by the running
// thread of the emulated grid. src/cuda/device documents what each does.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/device/config.h"

namespace attentile::cuda::emulator {

uint32_t thread_idx();
uint32_t block_threads();
Dim3 block_idx();
Dim3 grid_dim();

struct LoadKind {
  size_t bytes;
  bool read_only;  // .nc
};
void ld_shared(uint32_t address, void* value, size_t bytes, Site site);
void st_shared(uint32_t address, const void* value, size_t bytes, Site site);
void ld_global(const void* address, void* value, LoadKind kind, Site site);
void st_global(void* address, const void* value, size_t bytes, Site site);
float atomic_add_f32(float* address, float value, Site site);
int32_t atomic_add_acq_rel(int32_t* address, int32_t value, Site site);
int32_t ld_acquire(const int32_t* address, Site site);
void st_release(int32_t* address, int32_t value, Site site);
void fence_gpu(Site site);

struct CopySize {
  uint32_t bytes;
  uint32_t source_bytes;
};
void cp_async(uint32_t destination, const void* source, CopySize size, Site site);
void cp_async_commit_group(Site site);
void cp_async_wait_group(int pending, Site site);

void bar_sync_block(Site site);
void bar_sync(uint32_t id, uint32_t threads, Site site);
void bar_arrive(uint32_t id, uint32_t threads, Site site);
void bar_warp_sync(Site site);

enum class Shuffle { kIdx, kXor, kDown, kUp };
enum class Reduction { kAdd, kMin, kMax };
uint32_t shfl(Shuffle kind, uint32_t value, uint32_t operand, Site site);
uint32_t ballot(bool predicate, Site site);
uint32_t redux(Reduction kind, uint32_t value, Site site);

struct MatrixKind {
  int count;
  bool trans;
};
enum class MmaInput { kFloat16, kBFloat16, kTf32 };
struct MmaRegisters {
  float* acc;
  const uint32_t* a;
  const uint32_t* b;
};
void ldmatrix(uint32_t row, MatrixKind kind, uint32_t* registers, Site site);
void stmatrix(uint32_t row, int count, const uint32_t* registers, Site site);
void mma(MmaInput input, MmaRegisters registers, Site site);

float ex2_approx(float x, Site site);
float lg2_approx(float x, Site site);
float rcp_approx(float x, Site site);
float tanh_approx(float x, Site site);
float max_nan_f32(float a, float b);
uint32_t cvt_f16x2(float low, float high);
uint32_t cvt_bf16x2(float low, float high);
float cvt_f32_f16(uint16_t bits);
uint32_t cvt_tf32(float x);

}  // namespace attentile::cuda::emulator
