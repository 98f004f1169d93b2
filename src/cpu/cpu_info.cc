// SPDX-License-Identifier: Apache-2.0
// cpuid and xgetbv on x86-64 (the operating system must save the wide registers too), the auxiliary
// vector on aarch64, sysfs and sysconf for caches. No allocation, no stream, no lock: a fork at any
// moment leaves nothing half-done that the child would wait for.
#include "cpu/cpu_info.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>

#include "memory.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace attentile::cpu {
namespace {

constexpr Isa kAllIsas[] = {Isa::kScalar, Isa::kAvx2,     Isa::kAvx512, Isa::kAvx512Bf16,
                            Isa::kNeon,   Isa::kNeonBf16, Isa::kAmx};
#if defined(__x86_64__)
constexpr Isa kPriority[] = {Isa::kAmx, Isa::kAvx512Bf16, Isa::kAvx512, Isa::kAvx2, Isa::kScalar};
#elif defined(__aarch64__)
constexpr Isa kPriority[] = {Isa::kNeonBf16, Isa::kNeon, Isa::kScalar};
#else
constexpr Isa kPriority[] = {Isa::kScalar};
#endif

constexpr const char* kOverrideName = "ATTENTILE_CPU_ISA";

constexpr uint32_t isa_bit(Isa isa) {
  return uint32_t{1} << static_cast<int>(isa);
}

// A value found at most a few times and then kept. Whoever comes first stores it; a thread that
// comes meanwhile uses what it found itself. Nobody waits.
template <class T>
class Cached {
 public:
  template <class Find>
  T get(Find find) {
    if (state_.load(std::memory_order_acquire) == kStored) return value_;
    T value = find();
    int expected = kEmpty;
    if (state_.compare_exchange_strong(expected, kStoring, std::memory_order_relaxed)) {
      value_ = value;
      state_.store(kStored, std::memory_order_release);
    }
    return value;
  }

 private:
  static constexpr int kEmpty = 0, kStoring = 1, kStored = 2;
  std::atomic<int> state_{kEmpty};
  T value_{};
};

// The beginning of a small file as text without its last newline; empty where there is none.
template <size_t kSize>
void read_text(const char* path, char (&text)[kSize]) {
  text[0] = '\0';
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return;
  const ssize_t size = read(file, text, kSize - 1);
  close(file);
  text[size > 0 ? size : 0] = '\0';
  text[std::strcspn(text, "\n")] = '\0';
}

// "48K", "2M", "33554432"; 0 where it is none of these.
int64_t parse_size(const char* text) {
  char* end = nullptr;
  const long long number = std::strtoll(text, &end, 10);
  if (end == text || number <= 0 || number > (1LL << 40)) return 0;
  switch (*end) {
    case 'K': return number << 10;
    case 'M': return number << 20;
    case 'G': return number << 30;
    default: return number;
  }
}

void read_sysfs_caches(int64_t (&bytes)[3]) {
  for (int index = 0; index < 16; ++index) {
    char path[96], text[32];
    const auto read_field = [&](const char* field) {
      std::snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/%s", index,
                    field);
      read_text(path, text);
    };
    read_field("level");
    if (text[0] == '\0') return;
    const int64_t level = parse_size(text);
    read_field("type");
    if (level < 1 || level > 3 || std::strcmp(text, "Instruction") == 0) continue;
    read_field("size");
    if (const int64_t size = parse_size(text); size > 0) bytes[level - 1] = size;
  }
}

void find_caches(CpuInfo& info) {
  int64_t bytes[3] = {};
  read_sysfs_caches(bytes);
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  const int names[3] = {_SC_LEVEL1_DCACHE_SIZE, _SC_LEVEL2_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE};
  for (int level = 0; level < 3; ++level) {
    if (bytes[level] == 0) bytes[level] = sysconf(names[level]);
  }
#endif
  // A hypervisor may tell nonsense; tile sizes must not follow it.
  if (bytes[0] >= (4 << 10) && bytes[0] <= (1 << 20)) info.l1d_bytes = bytes[0];
  if (bytes[1] >= (64 << 10) && bytes[1] <= (256 << 20)) info.l2_bytes = bytes[1];
  if (bytes[2] > 0) info.l3_bytes = bytes[2];
}

// Copies without leading, trailing and doubled blanks; what cannot be printed becomes '?'.
template <size_t kSize>
void copy_clean(const char* from, char (&to)[kSize]) {
  size_t size = 0;
  for (; *from != '\0' && size + 1 < kSize; ++from) {
    const char c = *from >= ' ' && *from <= '~' ? *from : '?';
    if (c == ' ' && (size == 0 || to[size - 1] == ' ')) continue;
    to[size++] = c;
  }
  while (size > 0 && to[size - 1] == ' ') --size;
  to[size] = '\0';
}

#if defined(__x86_64__)

uint64_t enabled_register_state() {
  uint32_t low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t{high} << 32) | low;
}

uint32_t find_isas() {
  uint32_t isas = isa_bit(Isa::kScalar);
  uint32_t a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) return isas;
  constexpr uint32_t kNeeded = bit_FMA | bit_OSXSAVE | bit_AVX | bit_F16C;
  if ((c & kNeeded) != kNeeded) return isas;
  const uint64_t state = enabled_register_state();
  constexpr uint64_t kYmm = 0x06, kZmm = 0xe6;
  if ((state & kYmm) != kYmm || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return isas;
  if ((b & bit_AVX2) == 0) return isas;
  isas |= isa_bit(Isa::kAvx2);
  constexpr uint32_t kWide = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
  if ((state & kZmm) != kZmm || (b & kWide) != kWide) return isas;
  isas |= isa_bit(Isa::kAvx512);
  constexpr uint32_t kBf16 = 1u << 5;
  if (a < 1 || __get_cpuid_count(7, 1, &a, &b, &c, &d) == 0 || (a & kBf16) == 0) return isas;
  isas |= isa_bit(Isa::kAvx512Bf16);
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return isas;
  constexpr uint32_t kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  constexpr uint64_t kTiles = 0x60000;
  if ((d & kAmxBf16) == 0 || (d & kAmxTile) == 0 || (state & kTiles) != kTiles) return isas;
  return isas | isa_bit(Isa::kAmx);
}

void find_model(char (&model)[64]) {
  uint32_t words[13] = {};
  uint32_t* word = words;
  for (uint32_t leaf = 0x80000002; leaf <= 0x80000004; ++leaf, word += 4) {
    if (__get_cpuid(leaf, word, word + 1, word + 2, word + 3) == 0) break;
  }
  char text[sizeof words];
  std::memcpy(text, words, sizeof words);
  copy_clean(text, model);
}

#elif defined(__aarch64__)

uint32_t find_isas() {
  constexpr unsigned long kHwcap2Bf16 = 1UL << 14;  // HWCAP2_BF16, absent from old headers
  uint32_t isas = isa_bit(Isa::kScalar) | isa_bit(Isa::kNeon);
  if ((getauxval(AT_HWCAP2) & kHwcap2Bf16) != 0) isas |= isa_bit(Isa::kNeonBf16);
  return isas;
}

void find_model(char (&model)[64]) {
  char text[48];
  read_text("/sys/devices/system/cpu/cpu0/regs/identification/midr_el1", text);
  if (text[0] == '\0') return;
  char sentence[64];
  std::snprintf(sentence, sizeof sentence, "aarch64 MIDR %s", text);
  copy_clean(sentence, model);
}

#else

uint32_t find_isas() {
  return isa_bit(Isa::kScalar);
}
void find_model(char (&)[64]) {}

#endif

CpuInfo find_cpu_info() {
  CpuInfo info;
  find_caches(info);
  const int64_t cores = sysconf(_SC_NPROCESSORS_ONLN);
  info.cores = cores > 0 ? static_cast<int>(cores) : 1;
  find_model(info.model);
  if (info.model[0] == '\0') std::snprintf(info.model, sizeof info.model, "unknown");
  info.isa_bits = find_isas();
  return info;
}

struct Override {
  char name[32] = {};  // empty: none
};

Override read_override() {
  Override override_value;
  const char* text = std::getenv(kOverrideName);
  if (text != nullptr) copy_clean(text, override_value.name);
  return override_value;
}

// Linux lets a process use tile registers only after it asked to, and from then on wants room for
// them on alternate signal stacks: asked when they are about to be used.
bool request_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

Cached<bool> cached_tiles;

bool may_run(Isa isa) {
  return cpu_supports(isa) && (isa != Isa::kAmx || cached_tiles.get(request_tiles));
}

Cached<CpuInfo> cached_info;
Cached<Override> cached_override;

bool contains(IsaList list, Isa isa) {
  for (const Isa member : list) {
    if (member == isa) return true;
  }
  return false;
}

// "avx512, avx2, scalar": those of the priority list that are wanted.
template <class Wanted>
void list_names(char (&text)[128], Wanted wanted) {
  size_t size = 0;
  text[0] = '\0';
  for (const Isa isa : isa_priority()) {
    if (!wanted(isa) || size + 16 > sizeof text) continue;
    size += static_cast<size_t>(std::snprintf(text + size, sizeof text - size, "%s%s",
                                              size > 0 ? ", " : "", to_string(isa)));
  }
  if (size == 0) std::snprintf(text, sizeof text, "none");
}

Status refuse(const char* argument, Isa isa, IsaList built_in) {
  char names[128], sentence[288];
  if (!contains(built_in, isa)) {
    list_names(names, [&](Isa member) { return contains(built_in, member); });
    std::snprintf(sentence, sizeof sentence, "%s: %s is not built into this library, which has %s",
                  argument, to_string(isa), names);
  } else {
    list_names(names,
               [&](Isa member) { return contains(built_in, member) && cpu_supports(member); });
    std::snprintf(sentence, sizeof sentence, "%s: %s does not run on this machine, which runs %s",
                  argument, to_string(isa), names);
  }
  return make_status(StatusCode::kUnavailable, sentence);
}

}  // namespace

CpuInfo cpu_info() {
  return cached_info.get(find_cpu_info);
}

IsaList isa_priority() {
  return {kPriority, static_cast<int>(std::size(kPriority))};
}

bool cpu_supports(Isa isa) {
  const int index = static_cast<int>(isa);
  return index > 0 && index < 32 && (cpu_info().isa_bits & isa_bit(isa)) != 0;
}

Isa best_isa() {
  for (const Isa isa : isa_priority()) {
    if (cpu_supports(isa)) return isa;
  }
  return Isa::kScalar;
}

bool parse_isa(const char* name, Isa* isa) {
  if (std::strcmp(name, "auto") == 0) {
    *isa = Isa::kAuto;
    return true;
  }
  for (const Isa candidate : kAllIsas) {
    if (std::strcmp(name, to_string(candidate)) == 0) {
      *isa = candidate;
      return true;
    }
  }
  return false;
}

Result<Isa> resolve_isa(Isa requested, IsaList built_in, Isa not_by_itself) {
  const Override override_value = cached_override.get(read_override);
  return resolve_isa(requested, built_in, not_by_itself, override_value.name);
}

Result<Isa> resolve_isa(Isa requested, IsaList built_in, Isa not_by_itself,
                        const char* override_name) {
  const char* argument = "isa";
  if (requested == Isa::kAuto && override_name[0] != '\0') {
    argument = kOverrideName;
    if (!parse_isa(override_name, &requested)) {
      char sentence[192];
      std::snprintf(sentence, sizeof sentence,
                    "%s: is \"%.31s\", expected auto, scalar, avx2, avx512, avx512_bf16, amx, neon "
                    "or neon_bf16",
                    argument, override_name);
      return make_status(StatusCode::kInvalidArgument, sentence);
    }
  }
  if (requested == Isa::kAuto) {
    for (const Isa isa : isa_priority()) {
      if (isa != not_by_itself && contains(built_in, isa) && may_run(isa)) return isa;
    }
    return make_status(StatusCode::kUnavailable,
                       "isa: none of this library's kernels runs on this machine");
  }
  bool known = false;
  for (const Isa isa : kAllIsas) known = known || isa == requested;
  if (!known) {
    char sentence[96];
    std::snprintf(sentence, sizeof sentence, "isa: is %d, expected 0 to %d",
                  static_cast<int>(requested), static_cast<int>(Isa::kAmx));
    return make_status(StatusCode::kInvalidArgument, sentence);
  }
  if (!contains(built_in, requested) || !may_run(requested)) {
    return refuse(argument, requested, built_in);
  }
  return requested;
}

}  // namespace attentile::cpu
