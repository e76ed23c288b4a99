// Which process serves which slot.
#ifndef BACKSTORY_STORE_SLOTS_H_
#define BACKSTORY_STORE_SLOTS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "store/rocksdb_history_store.h"

namespace backstory {

// Constant after construction.
class SlotMap {
 public:
  // INVALID_ARGUMENT if a range leaves [0, kSlotCount) or two overlap. No ranges: `self` owns all.
  static absl::StatusOr<SlotMap> Create(const std::string& self, const std::vector<SlotRange>& ranges);

  // OK if `self` owns the slot, else FAILED_PRECONDITION naming slot and owner.
  absl::Status CheckOwned(int slot) const;

 private:
  std::string self_;
  std::vector<SlotRange> ranges_;
};

}  // namespace backstory

#endif  // BACKSTORY_STORE_SLOTS_H_
