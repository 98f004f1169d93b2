// SPDX-License-Identifier: Apache-2.0
// See overlap.h. All arithmetic is in 128 bits: 64-bit sizes times 64-bit strides fit.
#include "overlap.h"

#include <algorithm>
#include <cstdint>
#include <utility>

namespace attentile {
namespace {

// GCC and clang provide it everywhere this library builds; __extension__ keeps -pedantic quiet.
__extension__ typedef __int128 Wide;

constexpr Wide kMaxExtent = Wide{1} << 96;
constexpr int kMaxCandidates = 1 << 20;
constexpr int kMaxTerms = 2 * kMaxRank;

// A step that may be taken 0 to `count` times.
struct Term {
  Wide step = 0;   // > 0
  Wide count = 0;  // > 0
};

Wide gcd(Wide a, Wide b) {
  while (b != 0) a = std::exchange(b, a % b);
  return a;
}

// The sums that can be made of a few steps. Terms are sorted by step, longest first.
class BoundedSums {
 public:
  void add(Wide step, Wide count) {
    if (step == 0 || count <= 0) return;
    int at = 0;
    while (at < num_terms_ && term_[at].step > step) ++at;
    if (at < num_terms_ && term_[at].step == step) {
      term_[at].count += count;
      return;
    }
    for (int i = num_terms_; i > at; --i) term_[i] = term_[i - 1];
    term_[at] = {step, count};
    ++num_terms_;
  }

  // Whether some sum lies in [low, high].
  bool reach(Wide low, Wide high) {
    dense_[num_terms_] = true;
    reach_[num_terms_] = 0;
    divisor_[num_terms_] = 0;
    for (int i = num_terms_ - 1; i >= 0; --i) {
      const Wide step = term_[i].step;
      reach_[i] = reach_[i + 1] + step * term_[i].count;
      divisor_[i] = gcd(divisor_[i + 1], step);
      const bool last = i == num_terms_ - 1;
      dense_[i] = last || (dense_[i + 1] && divisor_[i] == divisor_[i + 1] &&
                           step <= reach_[i + 1] + divisor_[i]);
    }
    candidates_left_ = kMaxCandidates;
    return search(0, low, high);
  }

 private:
  // Whether the terms from number `first` on have a sum in [low, high].
  bool search(int first, Wide low, Wide high) {
    low = std::max(low, Wide{0});
    high = std::min(high, reach_[first]);
    if (low > high) return false;
    if (first == num_terms_) return true;
    const Wide divisor = divisor_[first];
    if ((low + divisor - 1) / divisor * divisor > high) return false;
    if (dense_[first]) return true;
    const Wide step = term_[first].step;
    const Wide rest = reach_[first + 1];
    const Wide most = std::min(term_[first].count, high / step);
    for (Wide n = low > rest ? (low - rest + step - 1) / step : 0; n <= most; ++n) {
      if (--candidates_left_ < 0) return true;
      if (search(first + 1, low - n * step, high - n * step)) return true;
    }
    return false;
  }

  Term term_[kMaxTerms];
  int num_terms_ = 0;
  Wide reach_[kMaxTerms + 1];    // the largest sum of the terms from here on
  Wide divisor_[kMaxTerms + 1];  // what all their steps are multiples of
  bool dense_[kMaxTerms + 1];    // every multiple of the divisor up to reach is one of their sums
  int candidates_left_ = 0;
};

// A view's dimensions of more than one element: absolute steps, and its first byte.
struct Layout {
  int rank = 0;
  Wide step[kMaxRank] = {};   // >= 0
  Wide count[kMaxRank] = {};  // size - 1 >= 1
  Wide first = 0;             // lowest address, relative to that of index 0
  Wide extent = 0;            // from the lowest to the highest element
  bool endless = false;       // longer than kMaxExtent
};

// In units of 1 / scale elements.
Layout layout_of(const TensorView& view, int64_t scale) {
  Layout layout;
  for (int i = 0; i < view.rank; ++i) {
    if (view.shape[i] <= 1) continue;
    const Wide stride = static_cast<Wide>(view.stride[i]) * scale;
    const Wide step = stride < 0 ? -stride : stride;
    const Wide count = view.shape[i] - 1;
    if (step != 0 && count > kMaxExtent / step) {
      layout.endless = true;
      return layout;
    }
    layout.step[layout.rank] = step;
    layout.count[layout.rank] = count;
    ++layout.rank;
    layout.extent += step * count;
    if (stride < 0) layout.first -= step * count;
  }
  layout.endless = layout.extent > kMaxExtent;
  return layout;
}

void sort_longest_first(Layout* layout) {
  for (int i = 1; i < layout->rank; ++i) {
    for (int j = i; j > 0 && layout->step[j] > layout->step[j - 1]; --j) {
      std::swap(layout->step[j], layout->step[j - 1]);
      std::swap(layout->count[j], layout->count[j - 1]);
    }
  }
}

}  // namespace

bool is_empty(const TensorView& view) {
  for (int i = 0; i < view.rank; ++i) {
    if (view.shape[i] == 0) return true;
  }
  return false;
}

// Two indices differ by d, |d_k| <= count_k, and meet when sum_k step_k d_k = 0. With the longest
// step that differs named p and d_p >= 1, shifting the others by count_k makes all terms positive:
//     step_p (d_p - 1) + sum_{k > p} step_k (d_k + count_k) = sum_{k > p} step_k count_k - step_p
bool self_overlaps(const TensorView& view) {
  if (is_empty(view)) return false;
  Layout layout = layout_of(view, 1);
  if (layout.endless) return true;
  sort_longest_first(&layout);
  Wide shorter = layout.extent;
  for (int p = 0; p < layout.rank; ++p) {
    if (layout.step[p] == 0) return true;
    shorter -= layout.step[p] * layout.count[p];
    if (layout.step[p] > shorter) continue;
    BoundedSums sums;
    sums.add(layout.step[p], layout.count[p] - 1);
    for (int k = p + 1; k < layout.rank; ++k) sums.add(layout.step[k], 2 * layout.count[k]);
    const Wide target = shorter - layout.step[p];
    if (sums.reach(target, target)) return true;
  }
  return false;
}

// Elements at a and b share a byte when -size_a < a - b < size_b. b counts down from its last
// element, so that all steps of both views add up:
//     a - b = first_a - last_b + sum of steps of a + sum of steps of b
bool overlaps(const TensorView& a, const TensorView& b) {
  if (is_empty(a) || is_empty(b)) return false;
  const int64_t size_a = size_of(a.dtype);
  const int64_t size_b = size_of(b.dtype);
  const Layout layout_a = layout_of(a, size_a);
  const Layout layout_b = layout_of(b, size_b);
  if (layout_a.endless || layout_b.endless) return true;
  const Wide first_a = static_cast<Wide>(reinterpret_cast<uintptr_t>(a.data)) + layout_a.first;
  const Wide first_b = static_cast<Wide>(reinterpret_cast<uintptr_t>(b.data)) + layout_b.first;
  if (first_a + layout_a.extent + size_a <= first_b) return false;
  if (first_b + layout_b.extent + size_b <= first_a) return false;
  BoundedSums sums;
  for (int i = 0; i < layout_a.rank; ++i) sums.add(layout_a.step[i], layout_a.count[i]);
  for (int i = 0; i < layout_b.rank; ++i) sums.add(layout_b.step[i], layout_b.count[i]);
  const Wide distance = first_a - (first_b + layout_b.extent);
  return sums.reach(1 - size_a - distance, size_b - 1 - distance);
}

}  // namespace attentile
