#include "serving/python/arrow_rows.h"

#include <charconv>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "features/io/event_json.h"

namespace backstory {
namespace {

constexpr int64_t kRowsMax = std::numeric_limits<int32_t>::max();

absl::string_view View(std::string_view text) { return {text.data(), text.size()}; }

// `text` without `prefix`, if it starts with it.
bool Strip(std::string_view text, std::string_view prefix, std::string_view* rest) {
  if (!text.starts_with(prefix)) return false;
  *rest = text.substr(prefix.size());
  return true;
}

}  // namespace

struct ArrowRows::Column {
  std::string_view name, format;
  const ArrowArray* array;
  size_t first, rows;  // values [first, first + rows) of the array's buffers

  template <typename T>
  const T* buffer(int index) const {
    return static_cast<const T*>(array->buffers[index]);
  }
  ValidBits valid() const { return {array->null_count == 0 ? nullptr : buffer<uint8_t>(0), first}; }
  bool is(std::string_view a, std::string_view b = {}) const { return format == a || (!b.empty() && format == b); }
  absl::Status Wants(std::string_view wanted) const {
    return absl::InvalidArgumentError(
        absl::StrCat("column ", View(name), ": Arrow format \"", View(format), "\", wanted ", View(wanted)));
  }

  // Calls see(row, text) for every row; "" where null. Offset is int32_t or int64_t.
  template <typename Offset, typename See>
  absl::Status EachText(const See& see) const {
    const Offset* offsets = buffer<Offset>(1);
    const char* bytes = buffer<char>(2);
    const ValidBits bits = valid();
    for (size_t row = 0; row < rows; ++row) {
      Offset begin, end;  // by memcpy: nothing promises alignment
      std::memcpy(&begin, offsets + first + row, sizeof begin);
      std::memcpy(&end, offsets + first + row + 1, sizeof end);
      if (begin < 0 || end < begin) return absl::InvalidArgumentError(absl::StrCat("column ", View(name), ": offsets"));
      const bool there = bits[row] && end > begin;
      see(row, there ? std::string_view(bytes + begin, static_cast<size_t>(end - begin)) : std::string_view());
    }
    return absl::OkStatus();
  }
  template <typename See>
  absl::Status EachText(const See& see) const {
    return format == "u" ? EachText<int32_t>(see) : EachText<int64_t>(see);
  }
};

absl::StatusOr<std::unique_ptr<ArrowRows>> ArrowRows::Make(ArrowSchema* schema, ArrowArray* array) {
  std::unique_ptr<ArrowRows> rows(new ArrowRows);
  rows->schema_ = std::exchange(*schema, {});
  rows->array_ = std::exchange(*array, {});
  if (absl::Status status = rows->AddAll(); !status.ok()) return status;
  return rows;
}

ArrowRows::~ArrowRows() {
  if (array_.release != nullptr) array_.release(&array_);
  if (schema_.release != nullptr) schema_.release(&schema_);
}

void* ArrowRows::Own(size_t bytes) {
  owned_.push_back(std::make_unique_for_overwrite<std::byte[]>(bytes));
  return owned_.back().get();
}

absl::Status ArrowRows::AddAll() {
  if (schema_.release == nullptr || array_.release == nullptr || std::string_view(schema_.format) != "+s" ||
      schema_.n_children != array_.n_children || array_.null_count > 0 || array_.length < 0 || array_.offset < 0) {
    return absl::InvalidArgumentError("not a record batch: wanted a struct of columns without nulls of its own");
  }
  if (array_.length > kRowsMax) {
    return absl::InvalidArgumentError(absl::StrCat("a batch of ", array_.length, " rows; at most ", kRowsMax));
  }
  rows_.rows = static_cast<size_t>(array_.length);
  for (int64_t i = 0; i < schema_.n_children; ++i) {
    const ArrowSchema& field = *schema_.children[i];
    const ArrowArray& child = *array_.children[i];
    const Column column{field.name == nullptr ? "" : field.name, field.format, &child,
                        static_cast<size_t>(child.offset + array_.offset), rows_.rows};
    if (child.length < array_.offset + array_.length || field.dictionary != nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("column ", View(column.name), ": too short, or a dictionary"));
    }
    for (int64_t j = 0; j < i; ++j) {
      if (column.name == schema_.children[j]->name) {
        return absl::InvalidArgumentError(absl::StrCat("column ", View(column.name), ": given twice"));
      }
    }
    if (absl::Status status = Add(column); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ArrowRows::Add(const Column& column) {
  const std::string_view name = column.name;
  std::string_view feature;
  if (name == kBatchUser) return AddUsers(column);
  if (name == kBatchItem) return AddIds(column, &rows_.items);
  if (name == kBatchRequestId) return AddIds(column, &rows_.request_ids);
  if (name == kBatchTime) return AddTimes(column, &rows_.times_us);
  if (name == kBatchAsOf) return AddTimes(column, &rows_.as_of_us);
  if (name == kBatchKnownBy) return AddTimes(column, &rows_.known_by_us);
  if (name == kBatchNamespace) return AddTexts(column, &rows_.namespaces);
  if (name == kBatchScene) return AddTexts(column, &rows_.scenes);
  if (Strip(name, kBatchRequestNumbers, &feature)) return AddNumbers(column, feature, &rows_.request_numbers);
  if (Strip(name, kBatchCandidateNumbers, &feature)) return AddNumbers(column, feature, &rows_.candidate_numbers);
  if (Strip(name, kBatchRequestTexts, &feature)) {
    rows_.request_texts.push_back({std::string(feature), {}});
    return AddTexts(column, &rows_.request_texts.back().values);
  }
  if (Strip(name, kBatchCandidateTexts, &feature)) {
    rows_.candidate_texts.push_back({std::string(feature), {}});
    return AddTexts(column, &rows_.candidate_texts.back().values);
  }
  return absl::InvalidArgumentError(absl::StrCat("column ", View(name), ": no such input"));
}

template <typename T>
std::span<const T> ArrowRows::ValuesOf(const Column& column) {
  if (column.rows == 0) return {};
  const auto* bytes = column.buffer<std::byte>(1) + column.first * sizeof(T);
  // Files that are mapped into memory may hold columns at odd addresses.
  if (reinterpret_cast<uintptr_t>(bytes) % alignof(T) != 0) {
    bytes = static_cast<const std::byte*>(std::memcpy(Own(column.rows * sizeof(T)), bytes, column.rows * sizeof(T)));
  }
  return {reinterpret_cast<const T*>(bytes), column.rows};
}

absl::Status ArrowRows::AddTexts(const Column& column, TextColumn* to) {
  if (!column.is("u", "U")) return column.Wants("text (utf8, large_utf8)");
  auto* views = static_cast<std::string_view*>(Own(column.rows * sizeof(std::string_view)));
  *to = {views, column.rows};
  return column.EachText([views](size_t row, std::string_view text) { new (views + row) std::string_view(text); });
}

absl::Status ArrowRows::AddUsers(const Column& column) {
  if (!column.is("l", "L")) return AddTexts(column, &rows_.users);
  constexpr size_t kDigitsMax = 20;
  auto* views = static_cast<std::string_view*>(Own(column.rows * sizeof(std::string_view)));
  auto* text = static_cast<char*>(Own(column.rows * kDigitsMax));
  const std::span<const int64_t> values = ValuesOf<int64_t>(column);
  const ValidBits valid = column.valid();
  for (size_t row = 0; row < column.rows; ++row) {
    char* end = text;
    if (valid[row]) {
      end = column.is("L") ? std::to_chars(text, text + kDigitsMax, static_cast<uint64_t>(values[row])).ptr
                           : std::to_chars(text, text + kDigitsMax, values[row]).ptr;
    }
    new (views + row) std::string_view(text, static_cast<size_t>(end - text));
    text = end;
  }
  rows_.users = {views, column.rows};
  return absl::OkStatus();
}

absl::Status ArrowRows::AddIds(const Column& column, WholeColumn<uint64_t>* to) {
  to->valid = column.valid();
  if (column.is("u", "U")) {
    auto* ids = static_cast<uint64_t*>(Own(column.rows * sizeof(uint64_t)));
    auto* bits = static_cast<uint8_t*>(Own(column.rows / 8 + 1));
    std::memset(bits, 0, column.rows / 8 + 1);
    *to = {{ids, column.rows}, {bits, 0}};
    return column.EachText([ids, bits](size_t row, std::string_view text) {
      ids[row] = IdFromText(text);
      if (!text.empty()) bits[row / 8] |= static_cast<uint8_t>(1 << (row % 8));
    });
  }
  if (!column.is("l", "L")) return column.Wants("a whole number (int64, uint64) or text");
  to->values = ValuesOf<uint64_t>(column);
  if (column.is("L")) return absl::OkStatus();
  uint8_t* bits = nullptr;  // a copy of the column's, made for the first negative value
  for (size_t row = 0; row < column.rows; ++row) {
    const auto value = static_cast<int64_t>(to->values[row]);
    if (value >= 0 || !to->valid[row]) continue;
    if (bits == nullptr) {
      bits = static_cast<uint8_t*>(Own(column.rows / 8 + 1));
      std::memset(bits, 0, column.rows / 8 + 1);
      for (size_t i = 0; i < column.rows; ++i) bits[i / 8] |= static_cast<uint8_t>(to->valid[i] << (i % 8));
      to->valid = {bits, 0};
    }
    bits[row / 8] &= static_cast<uint8_t>(~(1 << (row % 8)));
    bad_.push_back({row, std::string(column.name), absl::StrCat(value, " is not an id; ids are 0..2^64-1")});
  }
  return absl::OkStatus();
}

absl::Status ArrowRows::AddTimes(const Column& column, WholeColumn<int64_t>* to) {
  if (!column.is("l")) return column.Wants("microseconds (int64)");
  *to = {ValuesOf<int64_t>(column), column.valid()};
  return absl::OkStatus();
}

absl::Status ArrowRows::AddNumbers(const Column& column, std::string_view name, std::vector<NumberFeature>* to) {
  NumberFeature feature{std::string(name), {}, column.valid()};
  if (column.is("g")) {
    feature.values = ValuesOf<double>(column);
  } else if (column.is("f")) {
    feature.values = ValuesOf<float>(column);
  } else if (column.is("l")) {
    feature.values = ValuesOf<int64_t>(column);
  } else if (column.is("i")) {
    feature.values = ValuesOf<int32_t>(column);
  } else {
    return column.Wants("a number (float64, float32, int64, int32)");
  }
  to->push_back(std::move(feature));
  return absl::OkStatus();
}

}  // namespace backstory
