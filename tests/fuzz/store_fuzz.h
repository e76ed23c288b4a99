// The store's parsers as fuzz targets: any bytes in, no crash, no hang, bounded memory; what decodes encodes back.
// Replayed by store_codec_test; with BACKSTORY_FUZZ (clang) each is a libFuzzer program.
#ifndef BACKSTORY_TESTS_FUZZ_STORE_FUZZ_H_
#define BACKSTORY_TESTS_FUZZ_STORE_FUZZ_H_

#include <cstdlib>
#include <string_view>
#include <vector>

#include "store/event_codec.h"
#include "store/integrity.h"
#include "store/item_codec.h"
#include "store/user_record.h"

namespace backstory {

inline void FuzzHistoryValue(std::string_view bytes) {
  std::vector<StoredEvent> events;
  if (DecodeBlock(bytes, &events)) {
    if (events.empty() || events.size() > kBlockRowsMax) std::abort();
    std::vector<Event> visible;
    if (!DecodeVisible(bytes, {}, &visible) || visible.size() > events.size()) std::abort();
    for (const StoredEvent& e : events) (void)EventHash(e.event);
  }
  std::vector<uint64_t> ids;
  std::vector<int64_t> times;
  (void)DecodeBlockIds(bytes, &ids, &times);
  UserRecord record;
  if (DecodeUserRecord(bytes, &record)) (void)EncodeUserRecord(record);
  DeletedUser deleted;
  (void)DecodeDeletedUser(bytes, &deleted);
  Item item;
  (void)DecodeItem(bytes, &item);
}

inline void FuzzIntegrity(std::string_view bytes) {
  const auto record = ParseIntegrity(bytes);
  if (record.ok() && !ParseIntegrity(FormatIntegrity(*record)).ok()) std::abort();
}

}  // namespace backstory

#endif  // BACKSTORY_TESTS_FUZZ_STORE_FUZZ_H_
