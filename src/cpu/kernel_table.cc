// SPDX-License-Identifier: Apache-2.0
// The kernel sets that this build has, best first: one explicit list.
#include "cpu/kernel.h"

namespace attentile::cpu {

extern const KernelSet kScalarFloat;
extern const KernelSet kScalarDouble;
#if defined(ATTENTILE_HAVE_AVX2)
extern const KernelSet kAvx2Float;
extern const KernelSet kAvx2Double;
#endif
#if defined(ATTENTILE_HAVE_AVX512)
extern const KernelSet kAvx512Float;
extern const KernelSet kAvx512Double;
#endif
#if defined(ATTENTILE_HAVE_AMX)
extern const KernelSet kAmxFloat;
extern const KernelSet kAmxDouble;
#endif
#if defined(ATTENTILE_HAVE_NEON)
extern const KernelSet kNeonFloat;
extern const KernelSet kNeonDouble;
#endif

namespace {

const KernelSet* const kFloatSets[] = {
#if defined(ATTENTILE_HAVE_AMX)
    &kAmxFloat,
#endif
#if defined(ATTENTILE_HAVE_AVX512)
    &kAvx512Float,
#endif
#if defined(ATTENTILE_HAVE_AVX2)
    &kAvx2Float,
#endif
#if defined(ATTENTILE_HAVE_NEON)
    &kNeonFloat,
#endif
    &kScalarFloat,
};

const KernelSet* const kDoubleSets[] = {
#if defined(ATTENTILE_HAVE_AMX)
    &kAmxDouble,
#endif
#if defined(ATTENTILE_HAVE_AVX512)
    &kAvx512Double,
#endif
#if defined(ATTENTILE_HAVE_AVX2)
    &kAvx2Double,
#endif
#if defined(ATTENTILE_HAVE_NEON)
    &kNeonDouble,
#endif
    &kScalarDouble,
};

constexpr int kNumSets = sizeof(kFloatSets) / sizeof(kFloatSets[0]);

}  // namespace

KernelTable kernel_table(bool wide) {
  return {wide ? kDoubleSets : kFloatSets, kNumSets};
}

const KernelSet* find_kernels(Isa isa, bool wide) {
  const KernelTable table = kernel_table(wide);
  for (int n = 0; n < table.count; ++n) {
    if (table.sets[n]->isa == isa) return table.sets[n];
  }
  return nullptr;
}

}  // namespace attentile::cpu
