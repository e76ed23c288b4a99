#include "store/event_codec.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <unordered_map>

#include "features/event_rules.h"
#include "store/byte_io.h"
#include "store/column_codec.h"

namespace backstory {
namespace {

constexpr uint8_t kBlockVersion = 1;
constexpr uint64_t kTombstoneFlag = 4;  // flags = kind | tombstone << 2
constexpr uint64_t kKindMask = 3;
// Of the format; what may be stored is bounded by EventLimits.
constexpr size_t kContextMax = 32;
constexpr size_t kEmbeddingMax = 16;
static_assert(EventLimits::kContextMax <= kContextMax && EventLimits::kEmbeddingsMax <= kEmbeddingMax);

// The numeric columns of every row, in the order they are written.
enum Column : size_t {
  kTime,
  kId,
  kSeq,
  kIngest,
  kFlags,
  kRevision,
  kItem,
  kRequest,
  kPosition,
  kAction,
  kValue,
  kExposure,  // 0 none, 1 raw (next entry of the raw list), else 2 + zigzag(row - row of the exposure)
  kScene,
  kContextCount,
  kEmbeddingCount,
  kColumns
};

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

// Decoded columns; scratch that keeps its memory between blocks.
struct Columns {
  BlockHeader header;
  std::vector<uint64_t> numbers[kColumns];
  std::vector<uint64_t> exposure_raw, name_codes, value_codes, embeddings;
  std::vector<std::string_view> scenes, names, values;

  uint64_t at(Column column, size_t row) const { return numbers[column][row]; }
};

// Where the variable-length lists of the current row start.
struct Cursor {
  size_t exposure_raw = 0, context = 0, embedding = 0;
};

bool ReadHeader(ByteReader* reader, BlockHeader* header) {
  uint8_t version = 0;
  uint64_t rows = 0, live = 0;
  if (!reader->ReadByte(&version) || version != kBlockVersion) return reader->Fail();
  if (!reader->ReadVarint(&rows) || rows == 0 || rows > kBlockRowsMax) return reader->Fail();
  if (!reader->ReadVarint(&live) || live > rows || !reader->ReadVarint(&header->max_seq)) return reader->Fail();
  header->rows = rows;
  header->live = live;
  return true;
}

bool ReadStrings(ByteReader* reader, std::vector<std::string_view>* strings) {
  uint64_t count = 0;
  strings->clear();
  if (!reader->ReadVarint(&count) || count > reader->remaining()) return reader->Fail();
  for (uint64_t i = 0; i < count; ++i) {
    std::string_view s;
    if (!reader->ReadBytes(&s)) return false;
    strings->push_back(s);
  }
  return true;
}

bool ReadNumbers(ByteReader* reader, size_t count, std::vector<uint64_t>* numbers) {
  numbers->resize(count);
  return DecodeColumn(reader, *numbers);
}

bool CodesInside(const std::vector<uint64_t>& codes, size_t size) {
  return std::all_of(codes.begin(), codes.end(), [size](uint64_t code) { return code < size; });
}

// Sum of a count column, or nothing if a count passes its limit.
bool SumCounts(const std::vector<uint64_t>& counts, size_t limit, size_t* sum) {
  *sum = 0;
  for (const uint64_t count : counts) {
    if (count > limit) return false;
    *sum += count;
  }
  return true;
}

bool ReadLists(ByteReader* reader, Columns* c) {
  const auto& exposure = c->numbers[kExposure];
  const size_t raw = static_cast<size_t>(std::count(exposure.begin(), exposure.end(), 1));
  if (!ReadNumbers(reader, raw, &c->exposure_raw)) return false;
  for (size_t row = 0; row < exposure.size(); ++row) {
    if (exposure[row] < 2) continue;
    const uint64_t target = row - static_cast<uint64_t>(UnZigZag(exposure[row] - 2));
    if (target >= exposure.size()) return reader->Fail();
  }
  if (!ReadStrings(reader, &c->scenes) || !CodesInside(c->numbers[kScene], c->scenes.size())) return reader->Fail();
  size_t fields = 0, embeddings = 0;
  if (!SumCounts(c->numbers[kContextCount], kContextMax, &fields)) return reader->Fail();
  if (!SumCounts(c->numbers[kEmbeddingCount], kEmbeddingMax, &embeddings)) return reader->Fail();
  if (fields > 0) {
    if (!ReadStrings(reader, &c->names) || !ReadNumbers(reader, fields, &c->name_codes)) return false;
    if (!ReadStrings(reader, &c->values) || !ReadNumbers(reader, fields, &c->value_codes)) return false;
    if (!CodesInside(c->name_codes, c->names.size()) || !CodesInside(c->value_codes, c->values.size()))
      return reader->Fail();
  }
  return ReadNumbers(reader, embeddings, &c->embeddings);
}

bool ReadColumns(std::string_view block, Columns* c) {
  ByteReader reader(block);
  if (!ReadHeader(&reader, &c->header)) return false;
  for (auto& column : c->numbers) {
    if (!ReadNumbers(&reader, c->header.rows, &column)) return false;
  }
  if (!ReadLists(&reader, c) || reader.remaining() != 0) return false;
  for (size_t row = 0; row < c->header.rows; ++row) {
    const uint64_t flags = c->at(kFlags, row);
    const uint64_t kind = flags & kKindMask;
    if (flags > (kKindMask | kTombstoneFlag) || kind == 0 || kind > 2) return false;
    if (c->at(kTime, row) > static_cast<uint64_t>(INT64_MAX)) return false;
    if (c->at(kRevision, row) > UINT32_MAX || c->at(kPosition, row) > UINT32_MAX) return false;
    if (c->at(kValue, row) > UINT32_MAX || c->at(kAction, row) > UINT16_MAX) return false;
  }
  return true;
}

void Advance(const Columns& c, size_t row, Cursor* cursor) {
  cursor->exposure_raw += c.at(kExposure, row) == 1;
  cursor->context += c.at(kContextCount, row);
  cursor->embedding += c.at(kEmbeddingCount, row);
}

void FillEvent(const Columns& c, size_t row, const Cursor& cursor, Event* e) {
  e->kind = static_cast<EventKind>(c.at(kFlags, row) & kKindMask);
  e->tombstone = (c.at(kFlags, row) & kTombstoneFlag) != 0;
  e->event_id = c.at(kId, row);
  e->revision = static_cast<uint32_t>(c.at(kRevision, row));
  e->time_us = static_cast<int64_t>(c.at(kTime, row));
  e->item_id = c.at(kItem, row);
  e->request_id = c.at(kRequest, row);
  e->position = static_cast<uint32_t>(c.at(kPosition, row));
  e->action = static_cast<ActionType>(c.at(kAction, row));
  e->value = std::bit_cast<float>(static_cast<uint32_t>(c.at(kValue, row)));
  e->ingest_time_us = static_cast<int64_t>(c.at(kIngest, row));
  const uint64_t exposure = c.at(kExposure, row);
  if (exposure == 1) {
    e->exposure_id = c.exposure_raw[cursor.exposure_raw];
  } else if (exposure >= 2) {
    e->exposure_id = c.at(kId, row - static_cast<size_t>(UnZigZag(exposure - 2)));
  }
  const std::string_view scene = c.scenes[c.at(kScene, row)];
  if (!scene.empty()) e->scene = scene;
  for (size_t i = 0; i < c.at(kContextCount, row); ++i) {
    const size_t field = cursor.context + i;
    e->context.push_back({std::string(c.names[c.name_codes[field]]), std::string(c.values[c.value_codes[field]])});
  }
  const size_t embeddings = c.at(kEmbeddingCount, row);
  if (embeddings > 0) {
    const auto first = c.embeddings.begin() + static_cast<std::ptrdiff_t>(cursor.embedding);
    e->embedding_ids.assign(first, first + static_cast<std::ptrdiff_t>(embeddings));
  }
}

Columns* Scratch() {
  thread_local Columns columns;
  return &columns;
}

void FillNumbers(std::span<const StoredEvent> events, std::vector<uint64_t> (&numbers)[kColumns]) {
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
  thread_local std::vector<uint64_t> numbers[kColumns];
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
  return ReadHeader(&reader, header);
}

bool DecodeBlock(std::string_view block, std::vector<StoredEvent>* out) {
  Columns* c = Scratch();
  if (!ReadColumns(block, c)) return false;
  Cursor cursor;
  out->reserve(out->size() + c->header.rows);
  for (size_t row = 0; row < c->header.rows; ++row) {
    StoredEvent& stored = out->emplace_back();
    FillEvent(*c, row, cursor, &stored.event);
    stored.seq = c->at(kSeq, row);
    Advance(*c, row, &cursor);
  }
  return true;
}

bool DecodeBlockIds(std::string_view block, std::vector<uint64_t>* event_ids, std::vector<int64_t>* times_us) {
  ByteReader reader(block);
  BlockHeader header;
  if (!ReadHeader(&reader, &header)) return false;
  const size_t first = times_us->size();
  times_us->resize(first + header.rows);
  event_ids->resize(first + header.rows);
  static_assert(sizeof(int64_t) == sizeof(uint64_t));
  return DecodeColumn(&reader, {reinterpret_cast<uint64_t*>(times_us->data()) + first, header.rows}) &&
         DecodeColumn(&reader, {event_ids->data() + first, header.rows});
}

bool DecodeVisible(std::string_view block, const BlockFilter& filter, std::vector<Event>* out) {
  Columns* c = Scratch();
  if (!ReadColumns(block, c)) return false;
  Cursor cursor;
  for (size_t row = 0; row < c->header.rows; ++row) {
    const auto time_us = static_cast<int64_t>(c->at(kTime, row));
    const bool tombstone = (c->at(kFlags, row) & kTombstoneFlag) != 0;
    const bool known = filter.as_of.known_by_us == AsOf::kAnyIngestTime ||
                       static_cast<int64_t>(c->at(kIngest, row)) <= filter.as_of.known_by_us;
    if (time_us >= filter.from_us && time_us < filter.as_of.event_time_us && known &&
        (!tombstone || filter.include_tombstones)) {
      FillEvent(*c, row, cursor, &out->emplace_back());
    }
    Advance(*c, row, &cursor);
  }
  return true;
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
