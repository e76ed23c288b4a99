#include "store/event_codec.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <unordered_map>

#include "store/block_rows.h"
#include "store/byte_io.h"
#include "store/column_codec.h"

namespace backstory {
namespace {

struct StringTable {
  std::vector<std::string_view> strings;
  std::unordered_map<std::string_view, uint64_t> index;

  uint64_t Add(std::string_view s) {
    const auto [it, inserted] = index.emplace(s, strings.size());
    if (inserted) strings.push_back(s);
    return it->second;
  }
  void Encode(std::string* out) const {
    PutVarint(out, strings.size());
    for (const std::string_view s : strings) PutBytes(out, s);
  }
};

void FillNumbers(std::span<const StoredEvent> events, std::vector<uint64_t> (&numbers)[kBlockColumns]) {
  for (auto& column : numbers) column.resize(events.size());
  for (size_t row = 0; row < events.size(); ++row) {
    const Event& e = events[row].event;
    assert(row == 0 || !CanonicalLess(e, events[row - 1].event));
    numbers[kTime][row] = static_cast<uint64_t>(e.time_us);
    numbers[kId][row] = e.event_id;
    numbers[kSeq][row] = events[row].seq;
    numbers[kIngest][row] = static_cast<uint64_t>(e.ingest_time_us);
    numbers[kFlags][row] = static_cast<uint64_t>(e.kind) | (e.tombstone ? kTombstoneFlag : 0);
    numbers[kRevision][row] = e.revision;
    numbers[kItem][row] = e.item_id;
    numbers[kRequest][row] = e.request_id;
    numbers[kPosition][row] = e.position;
    numbers[kAction][row] = static_cast<uint64_t>(e.action);
    numbers[kValue][row] = std::bit_cast<uint32_t>(e.value);
    numbers[kContextCount][row] = e.context.size();
    numbers[kEmbeddingCount][row] = e.embedding_ids.size();
  }
}

// Actions usually answer an exposure of the same block: a short distance instead of eight random bytes.
void FillExposures(std::span<const StoredEvent> events, std::vector<uint64_t>* column, std::vector<uint64_t>* raw) {
  std::unordered_map<uint64_t, size_t> row_of;
  for (size_t row = 0; row < events.size(); ++row) {
    const uint64_t exposure = events[row].event.exposure_id;
    (*column)[row] = 0;
    if (exposure == 0) continue;
    if (row_of.empty()) {
      for (size_t i = 0; i < events.size(); ++i) row_of.emplace(events[i].event.event_id, i);
    }
    const auto it = row_of.find(exposure);
    if (it == row_of.end()) {
      (*column)[row] = 1;
      raw->push_back(exposure);
    } else {
      (*column)[row] = 2 + ZigZag(static_cast<int64_t>(row) - static_cast<int64_t>(it->second));
    }
  }
}

}  // namespace

std::string EncodeBlock(std::span<const StoredEvent> events) {
  assert(!events.empty() && events.size() <= kBlockRowsMax);
  thread_local std::vector<uint64_t> numbers[kBlockColumns];
  FillNumbers(events, numbers);
  std::vector<uint64_t> exposure_raw, name_codes, value_codes, embeddings;
  FillExposures(events, &numbers[kExposure], &exposure_raw);
  StringTable scenes, names, values;
  uint64_t live = 0, max_seq = 0;
  for (size_t row = 0; row < events.size(); ++row) {
    const Event& e = events[row].event;
    live += !e.tombstone;
    max_seq = std::max(max_seq, events[row].seq);
    numbers[kScene][row] =
        row > 0 && e.scene == events[row - 1].event.scene ? numbers[kScene][row - 1] : scenes.Add(e.scene);
    for (const ContextField& field : e.context) {
      name_codes.push_back(names.Add(field.name));
      value_codes.push_back(values.Add(field.value));
    }
    embeddings.insert(embeddings.end(), e.embedding_ids.begin(), e.embedding_ids.end());
  }
  std::string out;
  out.reserve(64 + 16 * events.size());
  out.push_back(static_cast<char>(kBlockVersion));
  PutVarint(&out, events.size());
  PutVarint(&out, live);
  PutVarint(&out, max_seq);
  for (const auto& column : numbers) EncodeColumn(column, &out);
  EncodeColumn(exposure_raw, &out);
  scenes.Encode(&out);
  if (!name_codes.empty()) {
    names.Encode(&out);
    EncodeColumn(name_codes, &out);
    values.Encode(&out);
    EncodeColumn(value_codes, &out);
  }
  EncodeColumn(embeddings, &out);
  return out;
}

bool DecodeBlockHeader(std::string_view block, BlockHeader* header) {
  ByteReader reader(block);
  return ReadBlockHeader(&reader, header);
}

bool DecodeBlock(std::string_view block, std::vector<StoredEvent>* out) {
  thread_local BlockRows rows;  // keeps its memory
  if (!rows.Decode(block)) return false;
  rows.AppendTo(out);
  return true;
}

bool DecodeBlockIds(std::string_view block, std::vector<uint64_t>* event_ids, std::vector<int64_t>* times_us) {
  ByteReader reader(block);
  BlockHeader header;
  if (!ReadBlockHeader(&reader, &header)) return false;
  const size_t first = times_us->size();
  times_us->resize(first + header.rows);
  event_ids->resize(first + header.rows);
  static_assert(sizeof(int64_t) == sizeof(uint64_t));
  return DecodeColumn(&reader, {reinterpret_cast<uint64_t*>(times_us->data()) + first, header.rows}) &&
         DecodeColumn(&reader, {event_ids->data() + first, header.rows});
}

uint64_t EventHash(const Event& e) {
  thread_local std::string bytes;
  bytes.clear();
  bytes.push_back(static_cast<char>(e.kind));
  bytes.push_back(static_cast<char>(e.tombstone));
  for (const uint64_t v : {e.event_id, uint64_t{e.revision}, static_cast<uint64_t>(e.time_us), e.item_id, e.request_id,
                           uint64_t{e.position}, static_cast<uint64_t>(e.action),
                           uint64_t{std::bit_cast<uint32_t>(e.value)}, e.exposure_id}) {
    PutFixed64(&bytes, v);
  }
  PutBytes(&bytes, e.scene);
  PutVarint(&bytes, e.context.size());
  for (const ContextField& field : e.context) {
    PutBytes(&bytes, field.name);
    PutBytes(&bytes, field.value);
  }
  for (const uint64_t id : e.embedding_ids) PutFixed64(&bytes, id);
  return XXH3_64bits(bytes.data(), bytes.size());
}

}  // namespace backstory
