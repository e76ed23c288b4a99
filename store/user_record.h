// The head record of a user, and the mark a deleted user leaves: values of the `heads` column family (store/FORMAT.md).
#ifndef BACKSTORY_STORE_USER_RECORD_H_
#define BACKSTORY_STORE_USER_RECORD_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "store/history_store.h"
#include "store/keys.h"

namespace backstory {

struct UserRecord {
  UserKey user;          // in clear: keys hold a hash only
  std::string alias_of;  // not empty: this id is an alias of that user, and nothing below counts
  UserHead head;
  uint64_t stored = 0;      // events and tombstones
  uint64_t epoch_seq = 0;   // seq at which the epoch last rose: older states must be rebuilt
  uint64_t retain_seq = 0;  // seq of the last retention: likewise
  uint64_t merged_seq = 0;  // every event with a higher seq is in a tail record
  uint32_t tail_events = 0, tail_records = 0;
  BlockKey floor;                    // retention dropped what is canonically before; refused since
  int64_t refuse_until_us = -1;      // user delete: events at or before it are refused as replays
  std::vector<std::string> aliases;  // ids merged into this user
};

std::string EncodeUserRecord(const UserRecord& record);
bool DecodeUserRecord(std::string_view bytes, UserRecord* record);

// What stays of a deleted user, under DeletedUserKey.
struct DeletedUser {
  int64_t deleted_us = 0;
  uint64_t seq = 0, epoch = 0;  // continued if the user comes back, so that no cached state is mistaken for fresh
};
std::string EncodeDeletedUser(const DeletedUser& deleted);
bool DecodeDeletedUser(std::string_view bytes, DeletedUser* deleted);

}  // namespace backstory

#endif  // BACKSTORY_STORE_USER_RECORD_H_
