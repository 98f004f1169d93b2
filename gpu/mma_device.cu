// SPDX-License-Identifier: Apache-2.0
// Tiles on the GPU.
#include "cuda/device/kernel.h"
#include "gpu/mma_kernel.h"

namespace attentile::gpu {
namespace {

// Device memory that holds a copy of a vector.
template <class T>
class Copy {
 public:
  explicit Copy(std::vector<T>& from) : from_(from) {
    if (cudaMalloc(&memory_, bytes()) == cudaSuccess) {
      (void)cudaMemcpy(memory_, from.data(), bytes(), cudaMemcpyHostToDevice);
    }
  }
  ~Copy() { (void)cudaFree(memory_); }
  T* get() const { return static_cast<T*>(memory_); }
  void back() { (void)cudaMemcpy(from_.data(), memory_, bytes(), cudaMemcpyDeviceToHost); }

 private:
  size_t bytes() const { return from_.size() * sizeof(T); }

  std::vector<T>& from_;
  void* memory_ = nullptr;
};

}  // namespace

std::string multiply_on_device(TileBatch& batch) {
  Copy<uint32_t> a(batch.a), b(batch.b);
  Copy<float> acc(batch.acc);
  const MmaParams params = {a.get(), b.get(), acc.get(), batch.count};
  cudaError_t error = with_mma_kernel(batch, [&]<class Kernel>(uint32_t blocks) {
    return cuda::launch<Kernel>({blocks}, Kernel::kSharedBytes, params, nullptr);
  });
  if (error == cudaSuccess) error = cudaDeviceSynchronize();
  acc.back();
  if (error == cudaSuccess) error = cudaGetLastError();
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

int device_architecture() {
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) return 0;
  return 10 * properties.major + properties.minor;
}

}  // namespace attentile::gpu
