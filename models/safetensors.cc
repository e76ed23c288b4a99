#include "models/safetensors.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "models/mapped_file.h"
#include "models/safetensors_header.h"
#include "nlohmann/json.hpp"

namespace backstory {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are little-endian in files and in memory");

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kDataAlignment = 64;

absl::Status Refused(const std::string& source, std::string_view why) {
  return absl::DataLossError(absl::StrCat(source, ": ", std::string(why)));
}

// Every byte of the data section belongs to exactly one tensor, and each range has the size of its shape.
absl::Status CheckRanges(const std::vector<SafetensorsEntry>& entries, uint64_t data_bytes) {
  uint64_t expected = 0;
  for (const SafetensorsEntry& e : entries) {
    const std::string range = absl::StrCat("tensor ", e.name, ": data_offsets [", e.begin, ", ", e.end, "]");
    if (e.end < e.begin || e.end > data_bytes) {
      return absl::DataLossError(absl::StrCat(range, " leave the ", data_bytes, " bytes of data"));
    }
    const auto bytes = TensorBytes(e.shape, e.dtype);
    if (!bytes) {
      return absl::DataLossError(absl::StrCat("tensor ", e.name, ": size of shape ", ShapeText(e.shape), " overflows"));
    }
    if (*bytes != e.end - e.begin) {
      return absl::DataLossError(
          absl::StrCat(range, ", but ", DTypeName(e.dtype), " ", ShapeText(e.shape), " has ", *bytes, " bytes"));
    }
    if (e.begin != expected) {
      return absl::DataLossError(absl::StrCat(range, e.begin < expected ? " overlap" : " leave a hole after",
                                              " the tensor before, which ends at ", expected));
    }
    expected = e.end;
  }
  if (expected != data_bytes) {
    return absl::DataLossError(absl::StrCat("data: ", data_bytes - expected, " bytes belong to no tensor"));
  }
  return absl::OkStatus();
}

float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1f;
  const uint32_t mantissa = half & 0x3ff;
  if (exponent == 0) {
    const float magnitude = std::ldexp(static_cast<float>(mantissa), -24);
    return sign ? -magnitude : magnitude;
  }
  const uint32_t wide = exponent == 0x1f ? 0xffu : exponent + 112;
  return std::bit_cast<float>(sign | (wide << 23) | (mantissa << 13));
}

std::vector<float> Widen(std::span<const uint8_t> bytes, DType dtype) {
  std::vector<float> values(bytes.size() / 2);
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t raw;
    std::memcpy(&raw, bytes.data() + 2 * i, 2);
    values[i] = dtype == DType::kBF16 ? std::bit_cast<float>(static_cast<uint32_t>(raw) << 16) : HalfToFloat(raw);
  }
  return values;
}

// Index of the first NaN or infinity.
std::optional<size_t> FirstNonFinite(std::span<const float> values) {
  constexpr uint32_t kExponent = 0x7f800000u;
  constexpr size_t kBlock = 4096;  // a branch a block, so that the inner loop vectorises
  for (size_t start = 0; start < values.size(); start += kBlock) {
    const size_t end = std::min(start + kBlock, values.size());
    uint32_t bad = 0;
    for (size_t i = start; i < end; ++i) bad |= (std::bit_cast<uint32_t>(values[i]) & kExponent) == kExponent;
    if (!bad) continue;
    for (size_t i = start; i < end; ++i) {
      if (!std::isfinite(values[i])) return i;
    }
  }
  return std::nullopt;
}

template <typename T>
constexpr DType kDTypeOf = DType::kF32;
template <>
constexpr DType kDTypeOf<double> = DType::kF64;
template <>
constexpr DType kDTypeOf<int64_t> = DType::kI64;
template <>
constexpr DType kDTypeOf<int32_t> = DType::kI32;
template <>
constexpr DType kDTypeOf<uint8_t> = DType::kU8;

}  // namespace

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path, const SafetensorsLimits& limits) {
  auto mapped = MapFile(path);
  if (!mapped.ok()) return mapped.status();
  return Parse(mapped->owner, mapped->size, path, limits);
}

absl::StatusOr<SafetensorsFile> SafetensorsFile::Parse(std::shared_ptr<const uint8_t> bytes, size_t size,
                                                       std::string source, const SafetensorsLimits& limits) {
  if (size < kLengthBytes) return Refused(source, absl::StrCat("header: ", size, " bytes are too few for a length"));
  uint64_t header_bytes;
  std::memcpy(&header_bytes, bytes.get(), kLengthBytes);
  if (header_bytes > limits.header_bytes_max) {
    return Refused(source,
                   absl::StrCat("header: ", header_bytes, " bytes exceed the limit of ", limits.header_bytes_max));
  }
  if (header_bytes > size - kLengthBytes) {
    return Refused(source, absl::StrCat("header: ", header_bytes, " bytes leave the file of ", size, " bytes"));
  }
  auto header =
      ParseSafetensorsHeader({reinterpret_cast<const char*>(bytes.get()) + kLengthBytes, header_bytes}, limits);
  if (!header.ok()) return Refused(source, std::string(header.status().message()));

  SafetensorsFile file;
  file.data_offset_ = kLengthBytes + header_bytes;
  file.entries_ = std::move(header->entries);
  file.metadata_ = std::move(header->metadata);
  std::sort(file.entries_.begin(), file.entries_.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  if (absl::Status s = CheckRanges(file.entries_, size - file.data_offset_); !s.ok()) {
    return Refused(source, std::string(s.message()));
  }
  for (size_t i = 0; i < file.entries_.size(); ++i) file.index_.emplace(file.entries_[i].name, i);
  file.bytes_ = std::move(bytes);
  file.source_ = std::move(source);
  return file;
}

const SafetensorsEntry* SafetensorsFile::Find(std::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &entries_[it->second];
}

std::span<const uint8_t> SafetensorsFile::Bytes(const SafetensorsEntry& entry) const {
  return {bytes_.get() + data_offset_ + entry.begin, entry.end - entry.begin};
}

absl::StatusOr<const SafetensorsEntry*> SafetensorsFile::FindTyped(std::string_view name, DType dtype) const {
  const SafetensorsEntry* entry = Find(name);
  if (entry == nullptr) return absl::NotFoundError(absl::StrCat(source_, ": tensor ", std::string(name), ": missing"));
  if (entry->dtype != dtype) {
    return Refused(source_, absl::StrCat("tensor ", entry->name, ": expected dtype ", DTypeName(dtype), ", found ",
                                         DTypeName(entry->dtype)));
  }
  return entry;
}

template <typename T>
absl::StatusOr<std::vector<T>> SafetensorsFile::Read(std::string_view name) const {
  const auto entry = FindTyped(name, kDTypeOf<T>);
  if (!entry.ok()) return entry.status();
  const auto bytes = Bytes(**entry);
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!bytes.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

template absl::StatusOr<std::vector<double>> SafetensorsFile::Read(std::string_view) const;
template absl::StatusOr<std::vector<float>> SafetensorsFile::Read(std::string_view) const;
template absl::StatusOr<std::vector<int64_t>> SafetensorsFile::Read(std::string_view) const;
template absl::StatusOr<std::vector<int32_t>> SafetensorsFile::Read(std::string_view) const;
template absl::StatusOr<std::vector<uint8_t>> SafetensorsFile::Read(std::string_view) const;

absl::Status SafetensorsFile::AddTo(TensorMap* map) const {
  for (const SafetensorsEntry& e : entries_) {
    const auto bytes = Bytes(e);
    absl::Status added;
    if (e.dtype == DType::kF32 && reinterpret_cast<uintptr_t>(bytes.data()) % alignof(float) == 0) {
      std::shared_ptr<const float> view(bytes_, reinterpret_cast<const float*>(bytes.data()));
      added = map->AddShared(e.name, e.shape, std::move(view), bytes.size() / sizeof(float));
    } else if (e.dtype == DType::kF32) {
      added = map->Add(e.name, e.shape, *Read<float>(e.name));
    } else if (e.dtype == DType::kF16 || e.dtype == DType::kBF16) {
      added = map->Add(e.name, e.shape, Widen(bytes, e.dtype));
    } else {
      return Refused(source_,
                     absl::StrCat("tensor ", e.name, ": expected dtype F32, F16 or BF16, found ", DTypeName(e.dtype)));
    }
    if (!added.ok()) return Refused(source_, std::string(added.message()));
    if (const auto bad = FirstNonFinite(map->Find(e.name)->values())) {
      return Refused(source_, absl::StrCat("tensor ", e.name, ": element ", *bad, " is ",
                                           std::isnan(map->Find(e.name)->data[*bad]) ? "NaN" : "infinite"));
    }
  }
  return absl::OkStatus();
}

absl::Status WriteSafetensors(const std::string& path, std::vector<SafetensorsTensor> tensors,
                              const std::map<std::string, std::string>& metadata) {
  const SafetensorsLimits limits;
  std::sort(tensors.begin(), tensors.end(), [](const SafetensorsTensor& a, const SafetensorsTensor& b) {
    const size_t wide_a = DTypeBytes(a.dtype), wide_b = DTypeBytes(b.dtype);
    return wide_a != wide_b ? wide_a > wide_b : a.name < b.name;
  });
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t offset = 0;
  for (const SafetensorsTensor& t : tensors) {
    const auto bytes = TensorBytes(t.shape, t.dtype);
    if (bytes != t.data.size()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": tensor ", t.name, ": ", t.data.size(),
                                                     " bytes do not fill ", DTypeName(t.dtype), " ",
                                                     ShapeText(t.shape)));
    }
    header[t.name] = {{"dtype", DTypeName(t.dtype)}, {"shape", t.shape}, {"data_offsets", {offset, offset + *bytes}}};
    offset += *bytes;
  }
  // Bytes that are no UTF-8 become U+FFFD here and the check below sees whatever else is wrong with a name.
  std::string json = header.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  const uint64_t unpadded = kLengthBytes + json.size();
  json.append((kDataAlignment - unpadded % kDataAlignment) % kDataAlignment, ' ');
  const auto parsed = ParseSafetensorsHeader(json, limits);
  if (!parsed.ok()) return absl::InvalidArgumentError(absl::StrCat(path, ": ", parsed.status().message()));
  if (parsed->entries.size() != tensors.size()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": two tensors have the same name"));
  }

  const uint64_t length = json.size();
  std::vector<std::string_view> pieces{{reinterpret_cast<const char*>(&length), kLengthBytes}, json};
  for (const SafetensorsTensor& t : tensors)
    pieces.emplace_back(reinterpret_cast<const char*>(t.data.data()), t.data.size());
  return WriteFileAtomically(path, pieces);
}

}  // namespace backstory
