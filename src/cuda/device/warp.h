// SPDX-License-Identifier: Apache-2.0
// Exchange between the 32 lanes of a warp. All are collectives: every lane of the warp executes
// the same call; the member mask is always full. None but bar_warp_sync orders memory.
#pragma once

#include <bit>

#include "cuda/device/config.h"

namespace attentile::cuda {

inline constexpr uint32_t kAllLanes = 0xFFFFFFFFu;

// A 32-bit value: uint32_t, int32_t or float.
template <class T>
concept Word = sizeof(T) == 4 && __is_trivially_copyable(T);

// bar.warp.sync: the lanes wait for each other; what any of them wrote before, all see after.
ATTENTILE_DEVICE void bar_warp_sync([[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  __syncwarp();
#else
  emulator::bar_warp_sync(site);
#endif
}

// shfl.sync.idx: the value of lane `source`.
template <Word T>
ATTENTILE_DEVICE T shfl_idx(T value, uint32_t source, [[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  return __shfl_sync(kAllLanes, value, static_cast<int>(source));
#else
  return std::bit_cast<T>(
      emulator::shfl(emulator::Shuffle::kIdx, std::bit_cast<uint32_t>(value), source, site));
#endif
}

// shfl.sync.bfly: the value of lane (own lane xor `lane_mask`).
template <Word T>
ATTENTILE_DEVICE T shfl_xor(T value, uint32_t lane_mask,
                            [[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  return __shfl_xor_sync(kAllLanes, value, static_cast<int>(lane_mask));
#else
  return std::bit_cast<T>(
      emulator::shfl(emulator::Shuffle::kXor, std::bit_cast<uint32_t>(value), lane_mask, site));
#endif
}

// shfl.sync.down: the value of lane (own lane + delta), one's own beyond the last lane.
template <Word T>
ATTENTILE_DEVICE T shfl_down(T value, uint32_t delta, [[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  return __shfl_down_sync(kAllLanes, value, delta);
#else
  return std::bit_cast<T>(
      emulator::shfl(emulator::Shuffle::kDown, std::bit_cast<uint32_t>(value), delta, site));
#endif
}

// shfl.sync.up: the value of lane (own lane - delta), one's own before the first lane.
template <Word T>
ATTENTILE_DEVICE T shfl_up(T value, uint32_t delta, [[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  return __shfl_up_sync(kAllLanes, value, delta);
#else
  return std::bit_cast<T>(
      emulator::shfl(emulator::Shuffle::kUp, std::bit_cast<uint32_t>(value), delta, site));
#endif
}

// vote.sync.ballot: bit l of the result is lane l's predicate.
ATTENTILE_DEVICE uint32_t ballot(bool predicate, [[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  return __ballot_sync(kAllLanes, predicate);
#else
  return emulator::ballot(predicate, site);
#endif
}

// vote.sync.any and vote.sync.all.
ATTENTILE_DEVICE bool any(bool predicate, [[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  return __any_sync(kAllLanes, predicate) != 0;
#else
  return emulator::ballot(predicate, site) != 0;
#endif
}
ATTENTILE_DEVICE bool all(bool predicate, [[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  return __all_sync(kAllLanes, predicate) != 0;
#else
  return emulator::ballot(predicate, site) == kAllLanes;
#endif
}

// redux.sync: the sum (modulo 2^32), minimum or maximum over the warp, in every lane.
ATTENTILE_DEVICE uint32_t redux_add(uint32_t value, [[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  return __reduce_add_sync(kAllLanes, value);
#else
  return emulator::redux(emulator::Reduction::kAdd, value, site);
#endif
}
ATTENTILE_DEVICE int32_t redux_min(int32_t value, [[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  return __reduce_min_sync(kAllLanes, value);
#else
  return static_cast<int32_t>(
      emulator::redux(emulator::Reduction::kMin, static_cast<uint32_t>(value), site));
#endif
}
ATTENTILE_DEVICE int32_t redux_max(int32_t value, [[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  return __reduce_max_sync(kAllLanes, value);
#else
  return static_cast<int32_t>(
      emulator::redux(emulator::Reduction::kMax, static_cast<uint32_t>(value), site));
#endif
}

}  // namespace attentile::cuda
