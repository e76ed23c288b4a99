// The item catalog: per namespace, item id -> fields. Durable; read from a memory-resident snapshot.
#ifndef BACKSTORY_STORE_CATALOG_H_
#define BACKSTORY_STORE_CATALOG_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "features/item.h"

namespace backstory {

// Thread-safe. Lookup never touches the disk: all items live in memory (state the bytes per item in stats).
class Catalog {
 public:
  virtual ~Catalog() = default;
  // All or nothing, durable when OK. Changing an immutable field of a known item: FAILED_PRECONDITION naming it, unless
  // allow_immutable_change (an offline re-import under a new feature version).
  virtual absl::Status Upsert(std::string_view ns, std::span<const Item> items,
                              bool allow_immutable_change = false) = 0;
  // nullptr if unknown. The pointer keeps the item alive.
  virtual std::shared_ptr<const Item> Find(std::string_view ns, uint64_t item_id) const = 0;
  // Find of many: items[i] of item_ids[i], all from one moment. What they point to lives as long as the pin returned.
  using Pin = std::shared_ptr<const void>;
  virtual Pin FindMany(std::string_view ns, std::span<const uint64_t> item_ids, std::span<const Item*> items) const {
    auto held = std::make_shared<std::vector<std::shared_ptr<const Item>>>();
    for (size_t i = 0; i < item_ids.size(); ++i) {
      held->push_back(Find(ns, item_ids[i]));
      items[i] = held->back().get();
    }
    return held;
  }
  // Visits a consistent snapshot in id order; stop by returning false.
  virtual void ForEach(std::string_view ns, const std::function<bool(const Item&)>& visit) const = 0;
  virtual uint64_t Size(std::string_view ns) const = 0;
  // Rises with every successful Upsert that changed something.
  virtual uint64_t Version(std::string_view ns) const = 0;
};

}  // namespace backstory

#endif  // BACKSTORY_STORE_CATALOG_H_
