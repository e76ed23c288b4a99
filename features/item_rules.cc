#include "features/item_rules.h"

#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "features/utf8.h"

namespace backstory {
namespace {

using L = ItemLimits;

absl::Status TooLong(const std::string& field, size_t found, const char* unit, size_t limit) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", found, " ", unit, ", limit ", limit));
}

absl::Status CheckName(const std::string& map, const std::string& name) {
  if (!name.empty() && name.size() <= L::kNameBytesMax) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(map, ": a name of ", name.size(), " bytes, 1 to ", L::kNameBytesMax, " needed"));
}

}  // namespace

absl::Status ValidateItem(const Item& item) {
  if (item.categories.size() > L::kCategoriesMax) {
    return TooLong("categories", item.categories.size(), "entries", L::kCategoriesMax);
  }
  for (const std::string& category : item.categories) {
    if (!IsUtf8(category)) return absl::InvalidArgumentError("categories: not UTF-8");
    if (category.empty()) return absl::InvalidArgumentError("categories: an empty entry");
    if (category.size() > L::kCategoryBytesMax) {
      return TooLong("categories", category.size(), "bytes in an entry", L::kCategoryBytesMax);
    }
  }
  if (item.sid.size() > L::kSidLevelsMax) return TooLong("sid", item.sid.size(), "levels", L::kSidLevelsMax);
  if (item.year < 0 || item.year > 9999) {
    return absl::InvalidArgumentError(absl::StrCat("year: ", item.year, " is outside 0..9999"));
  }
  if (item.embedding.size() > L::kEmbeddingMax) {
    return TooLong("embedding", item.embedding.size(), "numbers", L::kEmbeddingMax);
  }
  for (const float number : item.embedding) {
    if (!std::isfinite(number)) return absl::InvalidArgumentError("embedding: must be finite");
  }
  if (item.embedding_space.size() > L::kEmbeddingSpaceBytesMax) {
    return TooLong("embedding_space", item.embedding_space.size(), "bytes", L::kEmbeddingSpaceBytesMax);
  }
  if (!IsUtf8(item.embedding_space)) return absl::InvalidArgumentError("embedding_space: not UTF-8");
  if (item.embedding.empty() && !item.embedding_space.empty()) {
    return absl::InvalidArgumentError("embedding_space: given without an embedding");
  }
  if (item.title.size() > L::kTitleBytesMax) return TooLong("title", item.title.size(), "bytes", L::kTitleBytesMax);
  if (item.text.size() > L::kTextBytesMax) return TooLong("text", item.text.size(), "bytes", L::kTextBytesMax);
  if (!IsUtf8(item.title)) return absl::InvalidArgumentError("title: not UTF-8");
  if (!IsUtf8(item.text)) return absl::InvalidArgumentError("text: not UTF-8");
  if (item.numbers.size() + item.strings.size() > L::kMutableFieldsMax) {
    return TooLong("numbers and strings", item.numbers.size() + item.strings.size(), "fields", L::kMutableFieldsMax);
  }
  for (const auto& [name, number] : item.numbers) {
    if (auto status = CheckName("numbers", name); !status.ok()) return status;
    if (!IsUtf8(name)) return absl::InvalidArgumentError("numbers: not UTF-8");
    if (!std::isfinite(number)) return absl::InvalidArgumentError(absl::StrCat("numbers.", name, ": must be finite"));
  }
  for (const auto& [name, text] : item.strings) {
    if (auto status = CheckName("strings", name); !status.ok()) return status;
    if (!IsUtf8(name) || !IsUtf8(text)) return absl::InvalidArgumentError("strings: not UTF-8");
    if (text.size() > L::kStringBytesMax) return TooLong("strings." + name, text.size(), "bytes", L::kStringBytesMax);
  }
  return absl::OkStatus();
}

}  // namespace backstory
