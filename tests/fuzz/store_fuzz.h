// The store's parsers as fuzz targets: any bytes in, no crash, no hang, bounded memory; what decodes encodes back.
// Replayed by store_codec_test; with BACKSTORY_FUZZ (clang) each is a libFuzzer program.
#ifndef BACKSTORY_TESTS_FUZZ_STORE_FUZZ_H_
#define BACKSTORY_TESTS_FUZZ_STORE_FUZZ_H_

#include <algorithm>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "store/block_rows.h"
#include "store/event_codec.h"
#include "store/integrity.h"
#include "store/item_codec.h"
#include "store/user_record.h"

namespace backstory {

inline void FuzzHistoryValue(std::string_view bytes) {
  std::vector<StoredEvent> events;
  if (DecodeBlock(bytes, &events)) {
    if (events.empty() || events.size() > kBlockRowsMax) std::abort();
    // The rows a reader selects are events of the block, in its order.
    BlockRows rows;
    if (!rows.Decode(bytes)) std::abort();
    const BlockFilter filter{.as_of = {.event_time_us = INT64_MAX, .known_by_us = events[0].event.ingest_time_us}};
    const size_t selected = rows.Select(filter);
    std::vector<Event> visible;
    rows.AppendTo(selected / 2, &visible);
    if (visible.size() != selected - selected / 2) std::abort();
    auto from = events.begin();
    for (const Event& e : visible) {
      const auto same = [&e](const StoredEvent& stored) { return EventHash(stored.event) == EventHash(e); };
      from = std::find_if(from, events.end(), same);
      if (from++ == events.end()) std::abort();
    }
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
