// Values of the `catalog` column family.
#ifndef BACKSTORY_STORE_ITEM_CODEC_H_
#define BACKSTORY_STORE_ITEM_CODEC_H_

#include <string>
#include <string_view>

#include "features/item.h"

namespace backstory {

std::string EncodeItem(const Item& item);  // without its id, which is in the key
bool DecodeItem(std::string_view bytes, Item* item);

// Empty if the item may be stored, else the field and its limit.
std::string WhyItemRejected(const Item& item);

// Name of the first immutable field in which they differ, else empty. An embedding or its space may be absent from
// either.
std::string_view ImmutableDifference(const Item& a, const Item& b);

}  // namespace backstory

#endif  // BACKSTORY_STORE_ITEM_CODEC_H_
