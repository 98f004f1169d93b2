// SPDX-License-Identifier: Apache-2.0
// Checks and row-major writes of views: see view_writer.h.
#include "io/view_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "io/strided_reader.h"
#include "io/tensor_file.h"
#include "io/text.h"

namespace attentile::io {
namespace {

constexpr int64_t kPieceBytes = int64_t{1} << 18;

}  // namespace

std::string fault_of(const TensorView& view) {
  if (!view.present()) return "the view is absent";
  if (view.rank < 0 || view.rank > kMaxRank) {
    return fmt::format("rank is {}, but 0 to {} is expected", view.rank, kMaxRank);
  }
  if (view.device != Device::kCpu) return "it is not in the CPU's memory";
  if (size_of(view.dtype) == 0) {
    return fmt::format("dtype is {}, which is not a dtype", static_cast<int>(view.dtype));
  }
  const std::span<const int64_t> shape(view.shape, static_cast<size_t>(view.rank));
  const std::optional<uint64_t> num_bits =
      checked_num_bits(shape, static_cast<uint64_t>(size_of(view.dtype)) * 8);
  if (!num_bits) {
    return fmt::format("shape is {}, which is not the shape of an array", shape_text(shape));
  }
  if (view.data == nullptr && *num_bits > 0) return "data is null";
  return {};
}

Status write_elements(AtomicFile& file, const TensorView& view) {
  StridedReader reader(view);
  const int64_t item_bytes = size_of(view.dtype);
  if (reader.contiguous()) {
    return file.write(view.data, static_cast<size_t>(reader.num_elements() * item_bytes));
  }
  std::vector<std::byte> piece(static_cast<size_t>(kPieceBytes));
  const int64_t piece_elements = kPieceBytes / item_bytes;
  for (int64_t done = 0; done < reader.num_elements(); done += piece_elements) {
    const int64_t count = std::min(piece_elements, reader.num_elements() - done);
    reader.read(count, piece.data());
    const Status status = file.write(piece.data(), static_cast<size_t>(count * item_bytes));
    if (!status.ok()) return status;
  }
  return {};
}

}  // namespace attentile::io
