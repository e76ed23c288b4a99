// What a catalog item must look like.
#ifndef BACKSTORY_FEATURES_ITEM_RULES_H_
#define BACKSTORY_FEATURES_ITEM_RULES_H_

#include <cstddef>

#include "absl/status/status.h"
#include "features/item.h"

namespace backstory {

struct ItemLimits {
  static constexpr size_t kCategoriesMax = 64;
  static constexpr size_t kCategoryBytesMax = 256;
  static constexpr size_t kSidLevelsMax = 16;
  static constexpr size_t kEmbeddingMax = 4096;
  static constexpr size_t kEmbeddingSpaceBytesMax = 64;
  static constexpr size_t kTitleBytesMax = 512;
  static constexpr size_t kTextBytesMax = 8192;
  static constexpr size_t kMutableFieldsMax = 64;  // numbers and strings together
  static constexpr size_t kNameBytesMax = 64;
  static constexpr size_t kStringBytesMax = 1024;
};

// INVALID_ARGUMENT naming the field and the limit.
absl::Status ValidateItem(const Item& item);

}  // namespace backstory

#endif  // BACKSTORY_FEATURES_ITEM_RULES_H_
