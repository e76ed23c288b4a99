#include "store/column_codec.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cstring>

namespace backstory {
namespace {

constexpr std::array<uint64_t, 3> kScales = {1, 1'000, 1'000'000};
constexpr int kMaxPackedWidth = 56;  // a value spans at most 8 bytes wherever it starts
constexpr size_t kMaxDictionary = 64;

int WidthOf(uint64_t v) { return static_cast<int>(std::bit_width(v)); }
size_t PackedBytes(size_t rows, int width) { return (rows * static_cast<size_t>(width) + 7) / 8; }

void Pack(std::span<const uint64_t> values, uint64_t base, int width, std::string* out) {
  uint64_t bits = 0;
  int filled = 0;
  for (const uint64_t value : values) {
    bits |= (value - base) << filled;
    filled += width;
    while (filled >= 8) {
      out->push_back(static_cast<char>(bits));
      bits >>= 8;
      filled -= 8;
    }
  }
  if (filled > 0) out->push_back(static_cast<char>(bits));
}

bool Unpack(ByteReader* reader, uint64_t base, int width, std::span<uint64_t> values) {
  const size_t bytes = PackedBytes(values.size(), width);
  if (width > kMaxPackedWidth || bytes > reader->remaining()) return reader->Fail();
  const char* data = reader->position();
  const uint64_t mask = width == 0 ? 0 : ~uint64_t{0} >> (64 - width);
  size_t bit = 0;
  size_t i = 0;
  // Whole 8-byte loads as long as they stay inside, then a padded copy of the end.
  for (; i < values.size() && (bit >> 3) + 8 <= bytes; ++i, bit += static_cast<size_t>(width)) {
    uint64_t word;
    std::memcpy(&word, data + (bit >> 3), 8);
    values[i] = base + ((word >> (bit & 7)) & mask);
  }
  for (; i < values.size(); ++i, bit += static_cast<size_t>(width)) {
    uint64_t word = 0;
    const size_t at = bit >> 3;
    std::memcpy(&word, data + at, std::min<size_t>(8, bytes - at));
    values[i] = base + ((word >> (bit & 7)) & mask);
  }
  return reader->Skip(bytes);
}

// The distinct values if there are at most kMaxDictionary, in order of first use.
struct Dictionary {
  std::array<uint64_t, kMaxDictionary> values;
  size_t size = 0;
  bool overflow = false;

  size_t IndexOf(uint64_t value) const {
    return static_cast<size_t>(std::find(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(size), value) -
                               values.begin());
  }
  void Add(uint64_t value) {
    if (overflow || IndexOf(value) < size) return;
    if (size == kMaxDictionary) {
      overflow = true;
      return;
    }
    values[size++] = value;
  }
  int width() const { return size <= 1 ? 0 : WidthOf(size - 1); }
};

struct Plan {
  ColumnMode mode = ColumnMode::kRaw;
  size_t bytes = 0;
  uint64_t min = 0;
  int width = 0;
  int scale = 0;
  Dictionary dictionary;

  void Offer(ColumnMode candidate, size_t candidate_bytes) {
    if (candidate_bytes >= bytes) return;
    mode = candidate;
    bytes = candidate_bytes;
  }
};

int CommonScale(std::span<const uint64_t> values) {
  int scale = static_cast<int>(kScales.size()) - 1;
  for (const uint64_t value : values) {
    while (scale > 0 && value % kScales[static_cast<size_t>(scale)] != 0) --scale;
    if (scale == 0) break;
  }
  return scale;
}

Plan Choose(std::span<const uint64_t> values) {
  Plan plan;
  plan.bytes = 8 * values.size();
  const auto [min, max] = std::minmax_element(values.begin(), values.end());
  plan.min = *min;
  if (*min == *max) {
    plan.mode = ColumnMode::kConstant;
    return plan;
  }
  plan.width = WidthOf(*max - *min);
  if (plan.width <= kMaxPackedWidth) {
    plan.Offer(ColumnMode::kPacked, VarintSize(*min) + 1 + PackedBytes(values.size(), plan.width));
  }
  if (std::is_sorted(values.begin(), values.end())) {
    plan.scale = CommonScale(values);
    const uint64_t unit = kScales[static_cast<size_t>(plan.scale)];
    size_t bytes = 1 + VarintSize(values[0] / unit);
    for (size_t i = 1; i < values.size(); ++i) bytes += VarintSize((values[i] - values[i - 1]) / unit);
    plan.Offer(ColumnMode::kAscending, bytes);
  } else {
    size_t bytes = VarintSize(values[0]);
    for (size_t i = 1; i < values.size(); ++i)
      bytes += VarintSize(ZigZag(static_cast<int64_t>(values[i] - values[i - 1])));
    plan.Offer(ColumnMode::kDelta, bytes);
  }
  for (const uint64_t value : values) {
    plan.dictionary.Add(value);
    if (plan.dictionary.overflow) return plan;
  }
  size_t bytes = 2 + PackedBytes(values.size(), plan.dictionary.width());
  for (size_t i = 0; i < plan.dictionary.size; ++i) bytes += VarintSize(plan.dictionary.values[i]);
  plan.Offer(ColumnMode::kDictionary, bytes);
  return plan;
}

void EncodeDictionary(std::span<const uint64_t> values, const Dictionary& dictionary, std::string* out) {
  PutVarint(out, dictionary.size);
  for (size_t i = 0; i < dictionary.size; ++i) PutVarint(out, dictionary.values[i]);
  out->push_back(static_cast<char>(dictionary.width()));
  std::string codes;
  codes.reserve(PackedBytes(values.size(), dictionary.width()));
  uint64_t bits = 0;
  int filled = 0;
  for (const uint64_t value : values) {
    bits |= static_cast<uint64_t>(dictionary.IndexOf(value)) << filled;
    filled += dictionary.width();
    while (filled >= 8) {
      codes.push_back(static_cast<char>(bits));
      bits >>= 8;
      filled -= 8;
    }
  }
  if (filled > 0) codes.push_back(static_cast<char>(bits));
  out->append(codes);
}

bool DecodeDictionary(ByteReader* reader, std::span<uint64_t> values) {
  uint64_t size = 0;
  if (!reader->ReadVarint(&size) || size == 0 || size > kMaxDictionary) return reader->Fail();
  std::array<uint64_t, kMaxDictionary> entries{};
  for (size_t i = 0; i < size; ++i) {
    if (!reader->ReadVarint(&entries[i])) return false;
  }
  uint8_t width = 0;
  if (!reader->ReadByte(&width) || width > 6 || !Unpack(reader, 0, width, values)) return reader->Fail();
  for (uint64_t& value : values) {
    if (value >= size) return reader->Fail();
    value = entries[value];
  }
  return true;
}

bool DecodeAscending(ByteReader* reader, std::span<uint64_t> values) {
  uint8_t scale = 0;
  if (!reader->ReadByte(&scale) || scale >= kScales.size()) return reader->Fail();
  uint64_t sum = 0;
  for (uint64_t& value : values) {
    uint64_t step = 0;
    if (!reader->ReadVarint(&step)) return false;
    sum += step;
    value = sum * kScales[scale];
  }
  return true;
}

bool DecodeDelta(ByteReader* reader, std::span<uint64_t> values) {
  uint64_t sum = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    uint64_t step = 0;
    if (!reader->ReadVarint(&step)) return false;
    sum += i == 0 ? step : static_cast<uint64_t>(UnZigZag(step));
    values[i] = sum;
  }
  return true;
}

}  // namespace

void EncodeColumn(std::span<const uint64_t> values, std::string* out) {
  if (values.empty()) return;
  const Plan plan = Choose(values);
  out->push_back(static_cast<char>(plan.mode));
  switch (plan.mode) {
    case ColumnMode::kConstant:
      PutVarint(out, values[0]);
      return;
    case ColumnMode::kPacked:
      PutVarint(out, plan.min);
      out->push_back(static_cast<char>(plan.width));
      Pack(values, plan.min, plan.width, out);
      return;
    case ColumnMode::kAscending: {
      const uint64_t unit = kScales[static_cast<size_t>(plan.scale)];
      out->push_back(static_cast<char>(plan.scale));
      PutVarint(out, values[0] / unit);
      for (size_t i = 1; i < values.size(); ++i) PutVarint(out, (values[i] - values[i - 1]) / unit);
      return;
    }
    case ColumnMode::kDelta:
      PutVarint(out, values[0]);
      for (size_t i = 1; i < values.size(); ++i) {
        PutVarint(out, ZigZag(static_cast<int64_t>(values[i] - values[i - 1])));
      }
      return;
    case ColumnMode::kRaw:
      out->append(reinterpret_cast<const char*>(values.data()), values.size_bytes());
      return;
    case ColumnMode::kDictionary:
      EncodeDictionary(values, plan.dictionary, out);
      return;
  }
}

bool DecodeColumn(ByteReader* reader, std::span<uint64_t> values) {
  if (values.empty()) return reader->ok();
  uint8_t mode = 0;
  if (!reader->ReadByte(&mode)) return false;
  switch (static_cast<ColumnMode>(mode)) {
    case ColumnMode::kConstant: {
      uint64_t value = 0;
      if (!reader->ReadVarint(&value)) return false;
      std::fill(values.begin(), values.end(), value);
      return true;
    }
    case ColumnMode::kPacked: {
      uint64_t min = 0;
      uint8_t width = 0;
      return reader->ReadVarint(&min) && reader->ReadByte(&width) && Unpack(reader, min, width, values);
    }
    case ColumnMode::kAscending:
      return DecodeAscending(reader, values);
    case ColumnMode::kDelta:
      return DecodeDelta(reader, values);
    case ColumnMode::kRaw:
      if (reader->remaining() < values.size_bytes()) return reader->Fail();
      std::memcpy(values.data(), reader->position(), values.size_bytes());
      return reader->Skip(values.size_bytes());
    case ColumnMode::kDictionary:
      return DecodeDictionary(reader, values);
  }
  return reader->Fail();
}

}  // namespace backstory
