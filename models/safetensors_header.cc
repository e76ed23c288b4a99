#include "models/safetensors_header.h"

#include <cstdint>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace backstory {
namespace {

struct DTypeRow {
  DType dtype;
  const char* name;
  size_t bytes;
};

constexpr DTypeRow kDTypes[] = {
    {DType::kF64, "F64", 8},   {DType::kF32, "F32", 4}, {DType::kF16, "F16", 2}, {DType::kBF16, "BF16", 2},
    {DType::kI64, "I64", 8},   {DType::kI32, "I32", 4}, {DType::kI16, "I16", 2}, {DType::kI8, "I8", 1},
    {DType::kU64, "U64", 8},   {DType::kU32, "U32", 4}, {DType::kU16, "U16", 2}, {DType::kU8, "U8", 1},
    {DType::kBool, "BOOL", 1},
};

// Receives the header token by token, so that duplicate keys are seen (a document tree keeps only the last) and nothing
// deeper than the format's three levels is ever built.
class HeaderHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderHandler(const SafetensorsLimits& limits) : limits_(limits) {}

  bool null() override { return Fail("null"); }
  bool boolean(bool) override { return Fail("a boolean"); }
  bool number_integer(number_integer_t) override { return Fail("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { return Fail("a number that is no 64-bit integer"); }
  bool binary(binary_t&) override { return Fail("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ == Place::kShape) {
      if (entry_.shape.size() == limits_.dims_max) return Refuse("more than ", limits_.dims_max, " dimensions");
      if (value > static_cast<uint64_t>(INT64_MAX)) return Refuse("dimension ", value, " exceeds 2^63 - 1");
      entry_.shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (place_ == Place::kOffsets) {
      if (offsets_seen_ == 2) return Refuse("data_offsets has more than two numbers");
      (offsets_seen_++ == 0 ? entry_.begin : entry_.end) = value;
      return true;
    }
    return Fail("a number");
  }

  bool string(string_t& value) override {
    if (place_ == Place::kMetadataValue) {
      place_ = Place::kMetadata;
      header_.metadata[metadata_key_] = std::move(value);
      return true;
    }
    if (place_ == Place::kDType) {
      const auto dtype = DTypeFromName(value);
      if (!dtype) return Refuse("unknown dtype \"", value.substr(0, 16), "\"");
      entry_.dtype = *dtype;
      place_ = Place::kTensor;
      return true;
    }
    return Fail("a string");
  }

  bool start_object(size_t) override {
    switch (place_) {
      case Place::kStart:
        place_ = Place::kRoot;
        return true;
      case Place::kMetadataStart:
        place_ = Place::kMetadata;
        return true;
      case Place::kTensorStart:
        place_ = Place::kTensor;
        return true;
      default:
        return Fail("an object");
    }
  }

  bool key(string_t& value) override {
    if (place_ == Place::kRoot) return RootKey(value);
    if (place_ == Place::kMetadata) {
      if (header_.metadata.contains(value)) return Refuse("key \"", value, "\" twice");
      metadata_key_ = value;
      place_ = Place::kMetadataValue;
      return true;
    }
    return TensorKey(value);
  }

  bool end_object() override {
    if (place_ == Place::kTensor) {
      if (!has_dtype_ || !has_shape_ || !has_offsets_) return Refuse("lacks dtype, shape or data_offsets");
      header_.entries.push_back(std::move(entry_));
    }
    place_ = place_ == Place::kRoot ? Place::kEnd : Place::kRoot;
    return true;
  }

  bool start_array(size_t) override {
    if (place_ == Place::kShapeStart) {
      place_ = Place::kShape;
    } else if (place_ == Place::kOffsetsStart) {
      place_ = Place::kOffsets;
    } else {
      return Fail("an array");
    }
    return true;
  }

  bool end_array() override {
    if (place_ == Place::kOffsets && offsets_seen_ != 2) return Refuse("data_offsets has fewer than two numbers");
    place_ = Place::kTensor;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    if (error_.empty()) error_ = absl::StrCat("header: not JSON in UTF-8 at byte ", position);
    return false;
  }

  const std::string& error() const { return error_; }
  SafetensorsHeader& header() { return header_; }

 private:
  enum class Place {
    kStart,
    kRoot,
    kMetadataStart,
    kMetadata,
    kMetadataValue,
    kTensorStart,
    kTensor,
    kDType,
    kShapeStart,
    kShape,
    kOffsetsStart,
    kOffsets,
    kEnd,
  };

  bool RootKey(const std::string& name) {
    subject_ = absl::StrCat("tensor ", name.substr(0, limits_.name_bytes_max));
    if (!names_.insert(name).second) return Refuse("named twice");
    if (name == "__metadata__") {
      subject_ = "__metadata__";
      place_ = Place::kMetadataStart;
      return true;
    }
    if (name.empty()) return Refuse("has an empty name");
    if (name.size() > limits_.name_bytes_max) return Refuse("name exceeds ", limits_.name_bytes_max, " bytes");
    for (char c : name) {
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return Refuse("has a control character in its name");
    }
    if (header_.entries.size() == limits_.tensors_max) {
      subject_ = "header";
      return Refuse("more than ", limits_.tensors_max, " tensors");
    }
    entry_ = SafetensorsEntry{.name = name};
    has_dtype_ = has_shape_ = has_offsets_ = false;
    offsets_seen_ = 0;
    place_ = Place::kTensorStart;
    return true;
  }

  bool TensorKey(const std::string& key) {
    bool* seen = key == "dtype" ? &has_dtype_ : key == "shape" ? &has_shape_ : &has_offsets_;
    if (seen == &has_offsets_ && key != "data_offsets") return Refuse("unknown key \"", key.substr(0, 64), "\"");
    if (*seen) return Refuse("key \"", key, "\" twice");
    *seen = true;
    place_ = seen == &has_dtype_ ? Place::kDType : seen == &has_shape_ ? Place::kShapeStart : Place::kOffsetsStart;
    return true;
  }

  template <typename... Parts>
  bool Refuse(const Parts&... parts) {
    error_ = absl::StrCat(subject_, ": ", parts...);
    return false;
  }
  bool Fail(const char* found) { return Refuse("unexpected ", found); }

  const SafetensorsLimits& limits_;
  SafetensorsHeader header_;
  std::set<std::string> names_;
  SafetensorsEntry entry_;
  std::string metadata_key_;
  std::string subject_ = "header";
  std::string error_;
  Place place_ = Place::kStart;
  int offsets_seen_ = 0;
  bool has_dtype_ = false, has_shape_ = false, has_offsets_ = false;
};

}  // namespace

const char* DTypeName(DType dtype) { return kDTypes[static_cast<size_t>(dtype)].name; }
size_t DTypeBytes(DType dtype) { return kDTypes[static_cast<size_t>(dtype)].bytes; }

std::optional<DType> DTypeFromName(std::string_view name) {
  for (const DTypeRow& row : kDTypes) {
    if (name == row.name) return row.dtype;
  }
  return std::nullopt;
}

std::optional<uint64_t> TensorBytes(std::span<const int64_t> shape, DType dtype) {
  uint64_t bytes = DTypeBytes(dtype);
  for (int64_t dim : shape) {
    if (dim < 0 || __builtin_mul_overflow(bytes, static_cast<uint64_t>(dim), &bytes)) return std::nullopt;
  }
  return bytes;
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view json, const SafetensorsLimits& limits) {
  // The format wants the brace as the very first byte; the parser would also skip spaces and a byte order mark.
  if (json.empty() || json.front() != '{') return absl::DataLossError("header: does not begin with {");
  // The parser takes a zero byte for the end of the text and would not look at what follows.
  if (json.find('\0') != std::string_view::npos) return absl::DataLossError("header: has a zero byte");
  HeaderHandler handler(limits);
  if (!nlohmann::json::sax_parse(json.begin(), json.end(), &handler)) return absl::DataLossError(handler.error());
  return std::move(handler.header());
}

}  // namespace backstory
