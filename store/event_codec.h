// A block of one user's events, as columns: the value format of the history (store/FORMAT.md, "Event block").
#ifndef BACKSTORY_STORE_EVENT_CODEC_H_
#define BACKSTORY_STORE_EVENT_CODEC_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "features/event.h"

namespace backstory {

// An event with the user's commit sequence that wrote it.
struct StoredEvent {
  Event event;
  uint64_t seq = 0;
};

inline constexpr size_t kBlockRowsMax = 2048;  // a reader refuses more: bounds what a few damaged bytes can allocate

struct BlockHeader {
  size_t rows = 0;
  size_t live = 0;       // rows that are not tombstones
  uint64_t max_seq = 0;  // the newest commit in it
};

// 1 .. kBlockRowsMax events in canonical order.
std::string EncodeBlock(std::span<const StoredEvent> events);

// All false if malformed; what was appended to the output is then to be dropped.
bool DecodeBlockHeader(std::string_view block, BlockHeader* header);
bool DecodeBlock(std::string_view block, std::vector<StoredEvent>* out);  // appends
// Identity columns only, appended; an order of magnitude faster than the events.
bool DecodeBlockIds(std::string_view block, std::vector<uint64_t>* event_ids, std::vector<int64_t>* times_us);

// What a reader wants of a block (block_rows.h).
struct BlockFilter {
  AsOf as_of;
  int64_t from_us = 0;
  bool include_tombstones = false;
};

// Of every field of the canonical projection (all but ingest_time_us). Histories with equal events have equal sums.
uint64_t EventHash(const Event& event);

}  // namespace backstory

#endif  // BACKSTORY_STORE_EVENT_CODEC_H_
