// K/V pages beyond memory: opaque blobs, checksummed, disposable. The store never looks inside one; a page that is gone
// or damaged is recomputed from the history, so losing all of them loses time, never data.
#ifndef BACKSTORY_STORE_PAGE_STORE_H_
#define BACKSTORY_STORE_PAGE_STORE_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "store/history_store.h"

namespace backstory {

struct PageKey {
  UserKey user;
  uint64_t state_id = 0;  // hash of every setting the page depends on
  uint64_t epoch = 0;     // of the user's history
  uint32_t channel = 0;
  uint32_t page = 0;         // index within the channel
  uint64_t prefix_hash = 0;  // rolling hash of the events the page covers; Get verifies it
};

// Thread-safe. Put is best effort and not durable.
class PageStore {
 public:
  virtual ~PageStore() = default;
  // At most 64 MiB: INVALID_ARGUMENT beyond.
  virtual absl::Status Put(const PageKey& key, std::string_view page) = 0;
  // NOT_FOUND if absent, written for another prefix, or damaged (then it is dropped).
  virtual absl::StatusOr<std::string> Get(const PageKey& key) = 0;
  // Forgets every page of a user, whatever state or epoch.
  virtual absl::Status Drop(const UserKey& user) = 0;
};

}  // namespace backstory

#endif  // BACKSTORY_STORE_PAGE_STORE_H_
