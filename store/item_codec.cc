#include "store/item_codec.h"

#include <bit>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "store/byte_io.h"

namespace backstory {
namespace {

constexpr uint8_t kItemVersion = 1;
constexpr uint8_t kItemVersionEmbedded = 2;  // with an embedding at the end; binaries before it refuse such an item
constexpr uint8_t kItemVersionSpaced = 3;    // and with the embedding's space after it
constexpr size_t kEmbeddingMax = 4096;
constexpr size_t kEmbeddingSpaceBytesMax = 64;
constexpr size_t kCategoriesMax = 64;
constexpr size_t kCategoryBytesMax = 256;
constexpr size_t kSidLevelsMax = 16;
constexpr size_t kTitleBytesMax = 512;
constexpr size_t kTextBytesMax = 8192;
constexpr size_t kMapEntriesMax = 64;
constexpr size_t kMapBytesMax = 256;

std::string OverLimit(const char* field, size_t size, size_t limit, const char* unit) {
  return absl::StrCat(field, ": ", size, " ", unit, ", at most ", limit, " allowed");
}

}  // namespace

std::string EncodeItem(const Item& item) {
  std::string out;
  const uint8_t version = item.embedding.empty()         ? kItemVersion
                          : item.embedding_space.empty() ? kItemVersionEmbedded
                                                         : kItemVersionSpaced;
  out.push_back(static_cast<char>(version));
  PutVarint(&out, item.categories.size());
  for (const std::string& category : item.categories) PutBytes(&out, category);
  PutVarint(&out, item.sid.size());
  for (const uint32_t code : item.sid) PutVarint(&out, code);
  PutVarint(&out, ZigZag(item.year));
  PutBytes(&out, item.title);
  PutBytes(&out, item.text);
  PutVarint(&out, item.numbers.size());
  for (const auto& [name, value] : item.numbers) {
    PutBytes(&out, name);
    PutFixed64(&out, std::bit_cast<uint64_t>(value));
  }
  PutVarint(&out, item.strings.size());
  for (const auto& [name, value] : item.strings) {
    PutBytes(&out, name);
    PutBytes(&out, value);
  }
  if (!item.embedding.empty()) {
    std::string numbers;
    for (const float value : item.embedding) {
      const uint32_t bits = std::bit_cast<uint32_t>(value);
      for (int shift = 0; shift < 32; shift += 8) numbers.push_back(static_cast<char>(bits >> shift));
    }
    PutBytes(&out, numbers);
  }
  if (version == kItemVersionSpaced) PutBytes(&out, item.embedding_space);
  return out;
}

bool DecodeItem(std::string_view bytes, Item* item) {
  ByteReader reader(bytes);
  uint8_t version = 0;
  uint64_t count = 0, year = 0;
  std::string_view text, name;
  if (!reader.ReadByte(&version) || version < kItemVersion || version > kItemVersionSpaced) return false;
  if (!reader.ReadVarint(&count)) return false;
  for (uint64_t i = 0; i < count; ++i) {
    if (!reader.ReadBytes(&text)) return false;
    item->categories.emplace_back(text);
  }
  if (!reader.ReadVarint(&count)) return false;
  for (uint64_t i = 0; i < count; ++i) {
    uint64_t code = 0;
    if (!reader.ReadVarint(&code) || code > UINT32_MAX) return false;
    item->sid.push_back(static_cast<uint32_t>(code));
  }
  if (!reader.ReadVarint(&year)) return false;
  item->year = static_cast<int32_t>(UnZigZag(year));
  if (!reader.ReadBytes(&text)) return false;
  item->title = text;
  if (!reader.ReadBytes(&text)) return false;
  item->text = text;
  if (!reader.ReadVarint(&count)) return false;
  for (uint64_t i = 0; i < count; ++i) {
    uint64_t bits = 0;
    if (!reader.ReadBytes(&name) || !reader.ReadFixed64(&bits)) return false;
    item->numbers[std::string(name)] = std::bit_cast<double>(bits);
  }
  if (!reader.ReadVarint(&count)) return false;
  for (uint64_t i = 0; i < count; ++i) {
    if (!reader.ReadBytes(&name) || !reader.ReadBytes(&text)) return false;
    item->strings[std::string(name)] = text;
  }
  if (version >= kItemVersionEmbedded) {
    if (!reader.ReadBytes(&text) || text.empty() || text.size() % 4 != 0 || text.size() / 4 > kEmbeddingMax)
      return false;
    for (size_t i = 0; i < text.size(); i += 4) {
      uint32_t bits = 0;
      for (size_t byte = 0; byte < 4; ++byte) bits |= uint32_t{static_cast<uint8_t>(text[i + byte])} << (8 * byte);
      item->embedding.push_back(std::bit_cast<float>(bits));
    }
  }
  if (version == kItemVersionSpaced) {
    if (!reader.ReadBytes(&text) || text.empty() || text.size() > kEmbeddingSpaceBytesMax) return false;
    item->embedding_space = text;
  }
  return reader.remaining() == 0;
}

std::string WhyItemRejected(const Item& item) {
  if (item.categories.size() > kCategoriesMax)
    return OverLimit("categories", item.categories.size(), kCategoriesMax, "entries");
  for (const std::string& category : item.categories) {
    if (category.size() > kCategoryBytesMax)
      return OverLimit("categories", category.size(), kCategoryBytesMax, "bytes");
  }
  if (item.sid.size() > kSidLevelsMax) return OverLimit("sid", item.sid.size(), kSidLevelsMax, "levels");
  if (item.embedding.size() > kEmbeddingMax) {
    return OverLimit("embedding", item.embedding.size(), kEmbeddingMax, "numbers");
  }
  for (const float value : item.embedding) {
    if (!std::isfinite(value)) return "embedding: a number is not finite";
  }
  if (item.embedding_space.size() > kEmbeddingSpaceBytesMax) {
    return OverLimit("embedding_space", item.embedding_space.size(), kEmbeddingSpaceBytesMax, "bytes");
  }
  if (item.embedding.empty() && !item.embedding_space.empty()) return "embedding_space: given without an embedding";
  if (item.title.size() > kTitleBytesMax) return OverLimit("title", item.title.size(), kTitleBytesMax, "bytes");
  if (item.text.size() > kTextBytesMax) return OverLimit("text", item.text.size(), kTextBytesMax, "bytes");
  if (item.numbers.size() > kMapEntriesMax) return OverLimit("numbers", item.numbers.size(), kMapEntriesMax, "entries");
  if (item.strings.size() > kMapEntriesMax) return OverLimit("strings", item.strings.size(), kMapEntriesMax, "entries");
  for (const auto& [name, value] : item.numbers) {
    if (name.empty() || name.size() > kMapBytesMax)
      return absl::StrCat("numbers: a name has ", name.size(), " bytes, 1 to ", kMapBytesMax, " allowed");
    if (!std::isfinite(value)) return absl::StrCat("numbers: '", name, "' must be finite");
  }
  for (const auto& [name, value] : item.strings) {
    if (name.empty() || name.size() > kMapBytesMax)
      return absl::StrCat("strings: a name has ", name.size(), " bytes, 1 to ", kMapBytesMax, " allowed");
    if (value.size() > kMapBytesMax) return OverLimit("strings", value.size(), kMapBytesMax, "bytes");
  }
  return "";
}

std::string_view ImmutableDifference(const Item& a, const Item& b) {
  if (a.categories != b.categories) return "categories";
  if (a.sid != b.sid) return "sid";
  if (a.year != b.year) return "year";
  if (!a.embedding.empty() && !b.embedding.empty() && a.embedding != b.embedding) return "embedding";
  if (!a.embedding_space.empty() && !b.embedding_space.empty() && a.embedding_space != b.embedding_space) {
    return "embedding_space";
  }
  return "";
}

}  // namespace backstory
