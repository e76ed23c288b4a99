// Items of one namespace during one request: every item is looked up once and stays alive until the reader goes.
#ifndef BACKSTORY_SERVING_ENGINE_ITEM_READER_H_
#define BACKSTORY_SERVING_ENGINE_ITEM_READER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "features/item.h"
#include "store/catalog.h"

namespace backstory {

// Not thread-safe.
class ItemReader {
 public:
  ItemReader(const Catalog* catalog, std::string ns) : catalog_(catalog), ns_(std::move(ns)) {}

  // nullptr if unknown; else valid as long as the reader.
  const Item* Find(uint64_t item_id) {
    const auto [it, fresh] = items_.try_emplace(item_id);
    if (fresh) it->second = catalog_->Find(ns_, item_id);
    return it->second.get();
  }
  // Of the namespace, as the catalog stands now.
  uint64_t CatalogVersion() const { return catalog_->Version(ns_); }

 private:
  const Catalog* const catalog_;
  const std::string ns_;
  absl::flat_hash_map<uint64_t, std::shared_ptr<const Item>> items_;
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_ITEM_READER_H_
