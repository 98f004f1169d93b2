// SPDX-License-Identifier: Apache-2.0
// Reading and writing .npy: see npy.h; the header is npy_header.cc's.
#include "io/npy.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "io/atomic_file.h"
#include "io/byte_source.h"
#include "io/npy_header.h"
#include "io/strided_reader.h"
#include "io/text.h"
#include "io/view_writer.h"

namespace attentile::io {
namespace {

constexpr uint64_t kFixedBytes = 8;  // the magic string and the version
constexpr char kMagic[] = "\x93NUMPY";
constexpr size_t kMagicBytes = 6;

// What the preamble says, and where the data begins.
struct Preamble {
  NpyHeader header;
  uint64_t data_begin = 0;
};

Result<Preamble> read_preamble(ByteSource& source) {
  const uint64_t file_size = source.size();
  if (file_size == 0) return bad_content(source.name(), "the file is empty");
  unsigned char fixed[kFixedBytes + 4] = {};
  const uint64_t available = std::min<uint64_t>(file_size, kFixedBytes);
  if (Status status = source.read(0, available, fixed); !status.ok()) return status;
  if (std::memcmp(fixed, kMagic, std::min<uint64_t>(available, kMagicBytes)) != 0) {
    return bad_content(source.name(), "the file does not begin with \\x93NUMPY");
  }
  const int major = fixed[6];
  const int minor = fixed[7];
  const uint64_t length_bytes = major == 1 ? 2 : 4;
  const bool known = major >= 1 && major <= 3 && minor == 0;
  if (available == kFixedBytes && !known) {
    return bad_content(
        source.name(),
        fmt::format("version is {}.{}, but 1.0, 2.0 or 3.0 is expected", major, minor));
  }
  if (file_size < kFixedBytes + length_bytes) {
    return bad_content(source.name(), fmt::format("the file has {}, which ends before its header",
                                                  bytes_text(file_size)));
  }
  unsigned char* const word = fixed + kFixedBytes;
  if (Status status = source.read(kFixedBytes, length_bytes, word); !status.ok()) return status;
  uint64_t length = 0;
  for (size_t i = 0; i < length_bytes; ++i) length |= uint64_t{word[i]} << (8 * i);
  if (length > kMaxNpyHeader) {
    return bad_content(source.name(), fmt::format("header length is {}, but at most {} is allowed",
                                                  length, kMaxNpyHeader));
  }
  if (length > file_size - kFixedBytes - length_bytes) {
    return bad_content(source.name(), fmt::format("header length is {}, but the file has {}",
                                                  length, bytes_text(file_size)));
  }
  std::string text(length, '\0');
  if (Status status = source.read(kFixedBytes + length_bytes, length, text.data()); !status.ok()) {
    return status;
  }
  Result<NpyHeader> header = parse_npy_header(text, source.name());
  if (!header.ok()) return header.status();
  return Preamble{std::move(*header), kFixedBytes + length_bytes + length};
}

// The same array, whose bytes are column-major, in row-major order.
Result<Tensor> to_row_major(const Tensor& column_major, const std::string& name) {
  Result<Tensor> row_major = make_tensor(column_major.dtype, column_major.shape, name);
  if (!row_major.ok()) return row_major;
  std::vector<int64_t> stride;
  int64_t step = 1;
  for (const int64_t size : column_major.shape) {
    stride.push_back(step);
    step *= size;
  }
  StridedReader reader(column_major.buffer.data(), size_of(column_major.dtype), column_major.shape,
                       stride);
  reader.read(reader.num_elements(), row_major->buffer.data());
  return row_major;
}

Result<Tensor> read_from(ByteSource& source) {
  Result<Preamble> preamble = read_preamble(source);
  if (!preamble.ok()) return preamble.status();
  NpyHeader& header = preamble->header;
  const std::optional<uint64_t> num_bits =
      checked_num_bits(header.shape, static_cast<uint64_t>(size_of(header.dtype)) * 8);
  if (!num_bits) {
    return bad_content(source.name(), fmt::format("shape is {}, but its size in bits must be below "
                                                  "2^63",
                                                  shape_text(header.shape)));
  }
  const uint64_t expected = *num_bits / 8;
  const uint64_t found = source.size() - preamble->data_begin;
  if (expected != found) {
    return bad_content(
        source.name(),
        fmt::format("{} of shape {} takes {}, but the file holds {} after its header{}",
                    to_string(header.dtype), shape_text(header.shape), bytes_text(expected),
                    bytes_text(found), found > expected ? " (trailing bytes)" : ""));
  }
  Result<Tensor> tensor = make_tensor(header.dtype, std::move(header.shape), source.name());
  if (!tensor.ok()) return tensor;
  const Status status =
      source.read(preamble->data_begin, tensor->buffer.size(), tensor->buffer.data());
  if (!status.ok()) return status;
  if (!header.fortran_order || tensor->shape.size() < 2) return tensor;
  return to_row_major(*tensor, source.name());
}

}  // namespace

Result<Tensor> read_npy(const std::string& path) {
  return without_exceptions(path, [&]() -> Result<Tensor> {
    const Result<std::unique_ptr<ByteSource>> source = open_file(path);
    if (!source.ok()) return source.status();
    return read_from(**source);
  });
}

Result<Tensor> parse_npy(std::span<const std::byte> bytes, const std::string& name) {
  return without_exceptions(
      name, [&]() -> Result<Tensor> { return read_from(*memory_source(name, bytes)); });
}

Status write_npy(const std::string& path, const TensorView& view) {
  return without_exceptions(path, [&]() -> Status {
    if (const std::string fault = fault_of(view); !fault.empty()) return bad_content(path, fault);
    if (npy_descr(view.dtype).empty()) {
      return bad_content(
          path, fmt::format("dtype is {}, but .npy has no name for it", to_string(view.dtype)));
    }
    const std::string preamble =
        make_npy_preamble({view.dtype, false, {view.shape, view.shape + view.rank}});
    Result<AtomicFile> file = AtomicFile::create(path);
    if (!file.ok()) return file.status();
    Status status = file->write(preamble.data(), preamble.size());
    if (status.ok()) status = write_elements(*file, view);
    return status.ok() ? file->commit() : status;
  });
}

}  // namespace attentile::io
