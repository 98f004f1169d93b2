// SPDX-License-Identifier: Apache-2.0
// Tile loads and stores: the only way between slow memory (the tensors and the state that outlives
// a tile) and a worker's scratch. They convert to the accumulation type, read any strides and pages
// in place, never touch a byte outside the rows asked for, and count the bytes they move.
#pragma once

#include "cpu/kernel.h"
#include "cpu/simd/vec.h"
#include "dtype.h"

namespace attentile::cpu {

// The state of one worker within one task.
template <class Isa, class Real>
struct Worker {
  const Problem& problem;
  const CpuPlan& plan;
  const KernelJob& job;
  Progress& progress;
  int id;
  WorkerTraffic& traffic;
  char* free;     // bump allocator over the scratch slice
  int parts = 0;  // of the operands of the matrix unit in this task; 0: it is not used

  Worker(void* opaque, int worker, Progress& p)
      : problem(*static_cast<const KernelJob*>(opaque)->problem),
        plan(*static_cast<const KernelJob*>(opaque)->plan),
        job(*static_cast<const KernelJob*>(opaque)),
        progress(p),
        id(worker),
        traffic(*reinterpret_cast<WorkerTraffic*>(job.scratch(worker))),
        free(job.scratch(worker) + sizeof(WorkerTraffic)) {}
  ~Worker() {
    if (parts > 0) MatrixUnit<Isa, Real>::end();
  }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // First of all in a task about a sequence of so many queries, or about several of at most as
  // many.
  void use_unit(int64_t seqlen_q) {
    parts = plan.parts_for(seqlen_q);
    restore_unit();
  }

  // count values, 64-byte aligned, uninitialised. The plan has sized the slice for all of them.
  Real* take(int64_t count) {
    Real* result = reinterpret_cast<Real*>(free);
    free += (count * static_cast<int64_t>(sizeof(Real)) + 63) / 64 * 64;
    return result;
  }
  // A packed operand of so many 16-bit values, with flags for `sources` rows or lanes if any.
  Parts take_parts(int64_t values, int64_t ld, int64_t sources) {
    Parts packed;
    if (parts == 0) return packed;
    packed.data = reinterpret_cast<uint16_t*>(take(ceil_div(values * 2, sizeof(Real))));
    packed.parts = parts;
    packed.stride = values / parts;
    packed.ld = ld;
    if (sources > 0) {
      packed.any_hard = reinterpret_cast<uint8_t*>(take(ceil_div(sources + 1, sizeof(Real))));
      packed.hard = packed.any_hard + 1;
    }
    return packed;
  }
  void count_read(int64_t bytes) { traffic.bytes_read += bytes; }
  void count_written(int64_t bytes) { traffic.bytes_written += bytes; }
  bool keep_going() {
    const bool going = kernel_keep_going(progress, id);
    restore_unit();
    return going;
  }
  // Whoever was called back may have used the matrix unit for something else. No tile is live then.
  void restore_unit() {
    if (parts > 0) MatrixUnit<Isa, Real>::begin();
  }
};

template <class Isa, class Real>
inline Real load_scalar(const char* address, DType dtype) {
  if (dtype == DType::kFloat32) return static_cast<Real>(*reinterpret_cast<const float*>(address));
  if (dtype == DType::kFloat64) return static_cast<Real>(*reinterpret_cast<const double*>(address));
  const uint16_t bits = *reinterpret_cast<const uint16_t*>(address);
  return static_cast<Real>(dtype == DType::kFloat16 ? float16_to_float(bits)
                                                    : bfloat16_to_float(bits));
}

// dst[0..count) = count elements from address on, `stride` elements apart.
template <class Isa, class Real>
inline void load_row(const char* address, DType dtype, int64_t stride, int count, Real* dst) {
  using V = Vec<Isa, Real>;
  int i = 0;
  if (stride == 1 && dtype == (sizeof(Real) == 4 ? DType::kFloat32 : DType::kFloat64)) {
    const Real* src = reinterpret_cast<const Real*>(address);
    for (; i + V::kLanes <= count; i += V::kLanes) V::load(src + i).store(dst + i);
  } else if constexpr (sizeof(Real) == 4) {
    const uint16_t* src = reinterpret_cast<const uint16_t*>(address);
    if (stride == 1 && dtype == DType::kFloat16) {
      for (; i + V::kLanes <= count; i += V::kLanes) V::load_f16(src + i).store(dst + i);
    } else if (stride == 1 && dtype == DType::kBFloat16) {
      for (; i + V::kLanes <= count; i += V::kLanes) V::load_bf16(src + i).store(dst + i);
    }
  }
  const int64_t step = stride * size_of(dtype);
  for (; i < count; ++i) dst[i] = load_scalar<Isa, Real>(address + i * step, dtype);
}

// A vector of `count` such elements, 0 in the lanes beyond.
template <class Isa, class Real>
inline Vec<Isa, Real> load_vector(const char* address, DType dtype, int64_t stride, int count) {
  using V = Vec<Isa, Real>;
  if (count == V::kLanes && stride == 1) {
    if (dtype == (sizeof(Real) == 4 ? DType::kFloat32 : DType::kFloat64)) {
      return V::load(reinterpret_cast<const Real*>(address));
    }
    if constexpr (sizeof(Real) == 4) {
      const uint16_t* from = reinterpret_cast<const uint16_t*>(address);
      if (dtype == DType::kFloat16) return V::load_f16(from);
      if (dtype == DType::kBFloat16) return V::load_bf16(from);
    }
  }
  Real lanes[V::kLanes] = {};
  load_row<Isa, Real>(address, dtype, stride, count, lanes);
  return V::load(lanes);
}

// dst[i * stride] = src[i] rounded to dtype.
template <class Isa, class Real>
inline void store_row(const Real* src, char* address, DType dtype, int64_t stride, int count) {
  using V = Vec<Isa, Real>;
  int i = 0;
  if (stride == 1 && dtype == (sizeof(Real) == 4 ? DType::kFloat32 : DType::kFloat64)) {
    Real* dst = reinterpret_cast<Real*>(address);
    for (; i + V::kLanes <= count; i += V::kLanes) V::load(src + i).store(dst + i);
  } else if constexpr (sizeof(Real) == 4) {
    uint16_t* dst = reinterpret_cast<uint16_t*>(address);
    if (stride == 1 && dtype == DType::kFloat16) {
      for (; i + V::kLanes <= count; i += V::kLanes) V::load(src + i).store_f16(dst + i);
    } else if (stride == 1 && dtype == DType::kBFloat16) {
      for (; i + V::kLanes <= count; i += V::kLanes) V::load(src + i).store_bf16(dst + i);
    }
  }
  if (i == count) return;
  kernel_store_row(src + i, address + i * stride * size_of(dtype), dtype, stride, count - i);
}

// The first `count` lanes of a vector likewise.
template <class Isa, class Real>
inline void store_vector(Vec<Isa, Real> values, char* address, DType dtype, int64_t stride,
                         int count) {
  if (count == Vec<Isa, Real>::kLanes && stride == 1) {
    if (dtype == (sizeof(Real) == 4 ? DType::kFloat32 : DType::kFloat64)) {
      return values.store(reinterpret_cast<Real*>(address));
    }
    if constexpr (sizeof(Real) == 4) {
      uint16_t* to = reinterpret_cast<uint16_t*>(address);
      if (dtype == DType::kFloat16) return values.store_f16(to);
      if (dtype == DType::kBFloat16) return values.store_bf16(to);
    }
  }
  Real lanes[Vec<Isa, Real>::kLanes];
  values.store(lanes);
  store_row<Isa, Real>(lanes, address, dtype, stride, count);
}

// Key rows of k, v, dk or dv: keys of one KV head as [keys][ld], of which dim columns are used.
struct KeyRows {
  const Array4& array;
  const Sequence& s;
  int64_t b;
  int64_t head;
  KeyRange keys;
  int dim;
  int ld;

  [[gnu::always_inline]] int64_t bytes() const {
    return (keys.end - keys.begin) * dim * size_of(array.dtype);
  }
};

// Query rows of q, dout, out or dq: rows of one head as [rows][ld], of which dim columns are used.
struct QueryRows {
  const Array4& array;
  const Sequence& s;
  int64_t head;
  int64_t q_begin;
  int rows;
  int dim;
  int ld;

  [[gnu::always_inline]] char* row(int i) const {
    return array.at(s.batch_q, s.row_q + q_begin + i, head, 0);
  }
  [[gnu::always_inline]] int64_t bytes() const {
    return static_cast<int64_t>(rows) * dim * size_of(array.dtype);
  }
};

// A tile of flash1 may be a gigabyte: between so many of its rows the caller's poll is called.
inline constexpr int64_t kPollRows = 1024;

// Columns dim..ld are zeroed.
template <class Isa, class Real>
inline void load_keys(Worker<Isa, Real>& w, const KeyRows& k, Real* dst) {
  for (int64_t j = k.keys.begin; j < k.keys.end; ++j, dst += k.ld) {
    if (j % kPollRows == 0 && !w.keep_going()) return;
    const char* row = w.problem.key_row(k.array, k.s, k.b, k.head, j);
    load_row<Isa, Real>(row, k.array.dtype, k.array.stride[3], k.dim, dst);
    for (int c = k.dim; c < k.ld; ++c) dst[c] = 0;
  }
  w.count_read(k.bytes());
}

// Columns dim..ld are zeroed.
template <class Isa, class Real>
inline void load_queries(Worker<Isa, Real>& w, const QueryRows& q, Real* dst) {
  for (int i = 0; i < q.rows; ++i, dst += q.ld) {
    load_row<Isa, Real>(q.row(i), q.array.dtype, q.array.stride[3], q.dim, dst);
    for (int c = q.dim; c < q.ld; ++c) dst[c] = 0;
  }
  w.count_read(q.bytes());
}

// dst[c][lane] = src[lane][c]: [rows][ld] to [dim][lanes], lanes beyond the rows zeroed.
template <class Isa, class Real>
inline void transpose_to_lanes(const Real* src, int ld, int rows, int dim, int lanes, Real* dst) {
  using V = Vec<Isa, Real>;
  constexpr int kLanes = V::kLanes;
  for (int i0 = 0; i0 < lanes; i0 += kLanes) {
    int c = 0;
    for (; c + kLanes <= dim; c += kLanes) {
      V block[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        block[i] = i0 + i < rows ? V::load(src + (i0 + i) * ld + c) : V::set1(Real{0});
      }
      transpose(block);
      for (int i = 0; i < kLanes; ++i) block[i].store(dst + (c + i) * lanes + i0);
    }
    for (; c < dim; ++c) {
      for (int i = i0; i < i0 + kLanes; ++i) dst[c * lanes + i] = i < rows ? src[i * ld + c] : 0;
    }
  }
}

// Writes src[dim][lanes], times factor[lane], as rows of out or dq. Adding zero makes -0 into +0,
// so that a zero sum has one sign whatever the hidden part of a tile held.
template <class Isa, class Real>
inline void store_queries(Worker<Isa, Real>& w, const QueryRows& q, const Real* src, int lanes,
                          const Real* factor) {
  using V = Vec<Isa, Real>;
  constexpr int kLanes = V::kLanes;
  const DType dtype = q.array.dtype;
  const int64_t stride = q.array.stride[3];
  for (int i0 = 0; i0 < q.rows; i0 += kLanes) {
    const V times = V::load(factor + i0);
    const int rows = static_cast<int>(min64(kLanes, q.rows - i0));
    char* row[kLanes];
    for (int i = 0; i < rows; ++i) row[i] = q.row(i0 + i);
    const bool whole = rows == kLanes && stride == 1 && size_of(dtype) == sizeof(Real);
    for (int c = 0; c < q.dim; c += kLanes) {
      const int columns = static_cast<int>(min64(kLanes, q.dim - c));
      V block[kLanes];
      for (int n = 0; n < kLanes; ++n) {
        block[n] = V::load(src + (c + min64(n, columns - 1)) * lanes + i0) * times + V::set1(0);
      }
      transpose(block);
      if (whole && columns == kLanes) {
        for (int i = 0; i < kLanes; ++i) block[i].store(reinterpret_cast<Real*>(row[i]) + c);
        continue;
      }
      for (int i = 0; i < rows; ++i) {
        store_vector<Isa, Real>(block[i], row[i] + c * stride * size_of(dtype), dtype, stride,
                                columns);
      }
    }
  }
  w.count_written(q.bytes());
}

// State that outlives a tile (m, l, O of flash1; dQ): whole vectors, counted without the padding.
template <class Isa, class Real>
inline void copy_lanes(const Real* src, Real* dst, int64_t count) {
  using V = Vec<Isa, Real>;
  for (int64_t i = 0; i < count; i += V::kLanes) V::load(src + i).store(dst + i);
}
template <class Isa, class Real>
inline void fill_lanes(Real* dst, int64_t count, Real value) {
  using V = Vec<Isa, Real>;
  for (int64_t i = 0; i < count; i += V::kLanes) V::set1(value).store(dst + i);
}

// Whether [rows][ld] holds a NaN or an infinity in its first dim columns.
template <class Isa, class Real>
inline bool has_nonfinite(const Real* src, int64_t rows, int dim, int64_t ld) {
  using V = Vec<Isa, Real>;
  V sum = V::set1(Real{0});  // x * 0 is 0 for finite x, else NaN
  Real tail = 0;
  for (int64_t i = 0; i < rows; ++i, src += ld) {
    int c = 0;
    for (; c + V::kLanes <= dim; c += V::kLanes) {
      sum = V::fma(V::load(src + c), V::set1(Real{0}), sum);
    }
    for (; c < dim; ++c) tail += src[c] * Real{0};
  }
  const V one = V::set1(Real{1});
  const V zero = V::set1(Real{0});
  return !(tail == Real{0}) || V::any_lt(zero, V::select_lt(sum, one, zero, one));
}

// The same, of a tile of any size. Whatever it says once the call was stopped does not matter.
template <class Isa, class Real>
inline bool tile_has_nonfinite(Worker<Isa, Real>& w, const Real* src, int64_t rows, int dim,
                               int64_t ld) {
  for (int64_t i = 0; i < rows && w.keep_going(); i += kPollRows) {
    const int64_t count = min64(kPollRows, rows - i);
    if (has_nonfinite<Isa, Real>(src + i * ld, count, dim, ld)) return true;
  }
  return false;
}

// Packs a tile of any size as a left operand: its rows, or its columns as rows. Nothing where dst
// is not there.
template <class Isa, class Real>
inline void pack_tile(Worker<Isa, Real>& w, PackSource<Real> src, bool by_columns, Parts dst) {
  using Unit = MatrixUnit<Isa, Real>;
  if (dst.data == nullptr) return;
  const int64_t rows = src.rows;
  bool hard = false;
  for (int64_t i = 0; i < rows && (i == 0 || w.keep_going()); i += kPollRows) {
    src.rows = min64(kPollRows, rows - i);
    if (by_columns) {
      Unit::pack_left_transposed(src, dst);
    } else {
      Unit::pack_left(src, dst);
    }
    hard |= dst.has_hard();
    src.data += kPollRows * src.ld;
    dst = by_columns ? depth_from(dst, kPollRows) : rows_from(dst, kPollRows);
  }
  *dst.any_hard = static_cast<uint8_t>(hard);
}

// [rows][ld] to 0.
template <class Isa, class Real>
inline void clear_tile(Worker<Isa, Real>& w, Real* dst, int64_t rows, int64_t ld) {
  for (int64_t i = 0; i < rows && w.keep_going(); i += kPollRows) {
    fill_lanes<Isa, Real>(dst + i * ld, min64(kPollRows, rows - i) * ld, Real{0});
  }
}

}  // namespace attentile::cpu
