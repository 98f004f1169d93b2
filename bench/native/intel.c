/* SPDX-License-Identifier: Apache-2.0
   Preloaded into a second torch: its MKL asks here whether the processor is Intel's and otherwise
   keeps to AVX2. With it an AMD processor runs the kernels that Intel's runs. */
int mkl_serv_intel_cpu_true(void);

int mkl_serv_intel_cpu_true(void) {
  return 1;
}
