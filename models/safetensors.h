// The safetensors container, read strictly and written deterministically. docs/reference/model-files.md has the layout:
// u64 little-endian header length, JSON header, data; weights, token shards and test vectors all use it.
//
// Refused, each with file and tensor name: a header beyond the file or the limits, JSON that is not the one object the
// format knows, duplicate or unknown keys, names that are no UTF-8, unknown dtypes, shapes whose size overflows or
// differs from the byte range, byte ranges that leave the file, overlap, or leave a hole.
#ifndef BACKSTORY_MODELS_SAFETENSORS_H_
#define BACKSTORY_MODELS_SAFETENSORS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "models/tensor_map.h"

namespace backstory {

enum class DType : uint8_t { kF64, kF32, kF16, kBF16, kI64, kI32, kI16, kI8, kU64, kU32, kU16, kU8, kBool };

const char* DTypeName(DType dtype);  // as in the file: "F32"
size_t DTypeBytes(DType dtype);

struct SafetensorsLimits {
  uint64_t header_bytes_max = 100'000'000;  // the reference implementation's limit
  size_t tensors_max = 16'384;              // headers of very many tensors are a known denial of service
  size_t dims_max = 8;
  size_t name_bytes_max = 256;
};

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // bytes from the start of the data section
  uint64_t end = 0;
};

// A parsed file. Cheap to copy; copies share the mapping. Thread-safe.
class SafetensorsFile {
 public:
  // Maps the file read-only. NOT_FOUND and others of MapFile; DATA_LOSS for everything refused above.
  static absl::StatusOr<SafetensorsFile> Open(const std::string& path, const SafetensorsLimits& limits = {});
  // The same over memory that `bytes` keeps alive. `source` stands where the path stands in messages.
  static absl::StatusOr<SafetensorsFile> Parse(std::shared_ptr<const uint8_t> bytes, size_t size, std::string source,
                                               const SafetensorsLimits& limits = {});

  const std::string& source() const { return source_; }
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }  // in order of the data
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const SafetensorsEntry* Find(std::string_view name) const;  // nullptr if absent
  std::span<const uint8_t> Bytes(const SafetensorsEntry& entry) const;

  // The elements of a tensor of exactly this dtype: double, float, int64_t, int32_t or uint8_t. NOT_FOUND if absent,
  // DATA_LOSS naming expected and found dtype.
  template <typename T>
  absl::StatusOr<std::vector<T>> Read(std::string_view name) const;

  // Adds every tensor to `map` as fp32: F32 as a view of the mapping (copied if unaligned), F16 and BF16 widened.
  // DATA_LOSS naming the tensor: another dtype, a NaN or an infinity, or a name that the map already has.
  absl::Status AddTo(TensorMap* map) const;

 private:
  absl::StatusOr<const SafetensorsEntry*> FindTyped(std::string_view name, DType dtype) const;

  std::string source_;
  std::vector<SafetensorsEntry> entries_;
  std::map<std::string, size_t, std::less<>> index_;
  std::map<std::string, std::string> metadata_;
  std::shared_ptr<const uint8_t> bytes_;
  uint64_t data_offset_ = 0;
};

// One tensor to write; `data` is row-major, little-endian, of DTypeBytes(dtype) times the product of shape bytes.
struct SafetensorsTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::span<const uint8_t> data;
};

template <typename T>
std::span<const uint8_t> AsBytes(std::span<const T> values) {
  return {reinterpret_cast<const uint8_t*>(values.data()), values.size_bytes()};
}
template <typename T>
std::span<const uint8_t> AsBytes(const std::vector<T>& values) {
  return AsBytes(std::span<const T>(values));
}

// Writes atomically (temporary file, fsync, rename). Same tensors in any order, same bytes: wider elements come first,
// then names in order, and data starts at a multiple of 64, so that every tensor is aligned to its element.
// INVALID_ARGUMENT naming the tensor: data does not fill the shape, a name twice, or a limit passed.
absl::Status WriteSafetensors(const std::string& path, std::vector<SafetensorsTensor> tensors,
                              const std::map<std::string, std::string>& metadata = {});

}  // namespace backstory

#endif  // BACKSTORY_MODELS_SAFETENSORS_H_
