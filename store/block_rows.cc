#include "store/block_rows.h"

#include <algorithm>
#include <bit>

#include "features/event_rules.h"
#include "store/column_codec.h"

namespace backstory {
namespace {

// Of the format; what may be stored is bounded by EventLimits.
constexpr size_t kContextMax = 32;
constexpr size_t kEmbeddingMax = 16;
static_assert(EventLimits::kContextMax <= kContextMax && EventLimits::kEmbeddingsMax <= kEmbeddingMax);

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

bool ReadNumbers(ByteReader* reader, size_t count, NumberColumn* column) {
  column->constant = true;
  column->value = 0;
  if (count == 0) return reader->ok();
  if (reader->remaining() > 0 && static_cast<ColumnMode>(*reader->position()) == ColumnMode::kConstant) {
    return reader->Skip(1) && reader->ReadVarint(&column->value);
  }
  column->constant = false;
  column->rows.resize(count);
  return DecodeColumn(reader, column->rows);
}

bool AtMost(const NumberColumn& column, uint64_t limit) {
  if (column.constant) return column.value <= limit;
  bool over = false;
  for (const uint64_t value : column.rows) over |= value > limit;
  return !over;
}

// Codes of `size` texts.
bool CodesInside(const NumberColumn& codes, size_t size) { return size > 0 && AtMost(codes, size - 1); }

uint64_t Sum(const NumberColumn& column, size_t rows) {
  if (column.constant) return column.value * rows;
  uint64_t sum = 0;
  for (const uint64_t value : column.rows) sum += value;
  return sum;
}

}  // namespace

bool ReadBlockHeader(ByteReader* reader, BlockHeader* header) {
  uint8_t version = 0;
  uint64_t rows = 0, live = 0;
  if (!reader->ReadByte(&version) || version != kBlockVersion) return reader->Fail();
  if (!reader->ReadVarint(&rows) || rows == 0 || rows > kBlockRowsMax) return reader->Fail();
  if (!reader->ReadVarint(&live) || live > rows || !reader->ReadVarint(&header->max_seq)) return reader->Fail();
  header->rows = rows;
  header->live = live;
  return true;
}

bool BlockRows::ReadLists(ByteReader* reader) {
  const NumberColumn& exposure = columns_[kExposure];
  size_t raw = 0;
  for (size_t row = 0; row < header_.rows && !exposure.zero(); ++row) {
    const uint64_t code = exposure.at(row);
    raw += code == 1;
    if (code >= 2 && row - static_cast<uint64_t>(UnZigZag(code - 2)) >= header_.rows) return reader->Fail();
  }
  if (!ReadNumbers(reader, raw, &exposure_raw_)) return false;
  if (!ReadStrings(reader, &scenes_) || !CodesInside(columns_[kScene], scenes_.size())) return reader->Fail();
  if (!AtMost(columns_[kContextCount], kContextMax) || !AtMost(columns_[kEmbeddingCount], kEmbeddingMax)) {
    return reader->Fail();
  }
  if (const size_t fields = Sum(columns_[kContextCount], header_.rows); fields > 0) {
    if (!ReadStrings(reader, &names_) || !ReadNumbers(reader, fields, &name_codes_)) return false;
    if (!ReadStrings(reader, &values_) || !ReadNumbers(reader, fields, &value_codes_)) return false;
    if (!CodesInside(name_codes_, names_.size()) || !CodesInside(value_codes_, values_.size())) return reader->Fail();
  }
  return ReadNumbers(reader, Sum(columns_[kEmbeddingCount], header_.rows), &embeddings_);
}

bool BlockRows::WithinLimits() const {
  const NumberColumn& flags = columns_[kFlags];
  for (size_t row = 0; row < (flags.constant ? 1 : header_.rows); ++row) {
    const uint64_t kind = flags.at(row) & kKindMask;
    if (flags.at(row) > (kKindMask | kTombstoneFlag) || kind == 0 || kind > 2) return false;
  }
  return AtMost(columns_[kTime], static_cast<uint64_t>(INT64_MAX)) && AtMost(columns_[kRevision], UINT32_MAX) &&
         AtMost(columns_[kPosition], UINT32_MAX) && AtMost(columns_[kValue], UINT32_MAX) &&
         AtMost(columns_[kAction], UINT16_MAX);
}

bool BlockRows::Decode(std::string_view block) {
  ByteReader reader(block);
  if (!ReadBlockHeader(&reader, &header_)) return false;
  for (NumberColumn& column : columns_) {
    if (!ReadNumbers(&reader, header_.rows, &column)) return false;
  }
  if (!ReadLists(&reader) || reader.remaining() != 0 || !WithinLimits()) return false;
  has_lists_ = !columns_[kExposure].zero() || !columns_[kContextCount].zero() || !columns_[kEmbeddingCount].zero() ||
               !columns_[kScene].constant || !scenes_[columns_[kScene].value].empty();
  all_selected_ = true;
  return true;
}

bool BlockRows::Visible(size_t row) const {
  const auto time_us = static_cast<int64_t>(columns_[kTime].at(row));
  const bool known = filter_.as_of.known_by_us == AsOf::kAnyIngestTime ||
                     static_cast<int64_t>(columns_[kIngest].at(row)) <= filter_.as_of.known_by_us;
  return time_us >= filter_.from_us && time_us < filter_.as_of.event_time_us && known &&
         ((columns_[kFlags].at(row) & kTombstoneFlag) == 0 || filter_.include_tombstones);
}

size_t BlockRows::Select(const BlockFilter& filter) {
  filter_ = filter;
  size_t selected = 0;
  for (size_t row = 0; row < header_.rows; ++row) selected += Visible(row);
  all_selected_ = selected == header_.rows;
  return selected;
}

void BlockRows::Advance(size_t row, Cursor* cursor) const {
  cursor->exposure_raw += columns_[kExposure].at(row) == 1;
  cursor->context += columns_[kContextCount].at(row);
  cursor->embedding += columns_[kEmbeddingCount].at(row);
}

void BlockRows::FillLists(size_t row, const Cursor& cursor, Event* e) const {
  const uint64_t exposure = columns_[kExposure].at(row);
  if (exposure == 1) {
    e->exposure_id = exposure_raw_.at(cursor.exposure_raw);
  } else if (exposure >= 2) {
    e->exposure_id = columns_[kId].at(row - static_cast<size_t>(UnZigZag(exposure - 2)));
  }
  const std::string_view scene = scenes_[columns_[kScene].at(row)];
  if (!scene.empty()) e->scene = scene;
  const size_t fields = columns_[kContextCount].at(row);
  e->context.reserve(fields);
  for (size_t i = cursor.context; i < cursor.context + fields; ++i) {
    e->context.push_back({std::string(names_[name_codes_.at(i)]), std::string(values_[value_codes_.at(i)])});
  }
  const size_t embeddings = columns_[kEmbeddingCount].at(row);
  for (size_t i = cursor.embedding; i < cursor.embedding + embeddings; ++i) {
    e->embedding_ids.push_back(embeddings_.at(i));
  }
}

template <typename Take>
void BlockRows::ForEachRow(const Take& take) const {
  // Rows of a column, a constant one as a single value that every row reads: no branch in the loop.
  struct Source {
    const uint64_t* data;
    size_t mask;
    uint64_t at(size_t row) const { return data[row & mask]; }
  };
  std::array<Source, kBlockColumns> from;
  for (size_t i = 0; i < kBlockColumns; ++i) {
    const NumberColumn& column = columns_[i];
    from[i] = column.constant ? Source{&column.value, 0} : Source{column.rows.data(), SIZE_MAX};
  }
  Cursor cursor;
  for (size_t row = 0; row < header_.rows; ++row) {
    take(row, [&](Event* e) {
      const uint64_t flags = from[kFlags].at(row);
      e->kind = static_cast<EventKind>(flags & kKindMask);
      e->event_id = from[kId].at(row);
      e->revision = static_cast<uint32_t>(from[kRevision].at(row));
      e->tombstone = (flags & kTombstoneFlag) != 0;
      e->time_us = static_cast<int64_t>(from[kTime].at(row));
      e->item_id = from[kItem].at(row);
      e->request_id = from[kRequest].at(row);
      e->position = static_cast<uint32_t>(from[kPosition].at(row));
      e->action = static_cast<ActionType>(from[kAction].at(row));
      e->value = std::bit_cast<float>(static_cast<uint32_t>(from[kValue].at(row)));
      e->ingest_time_us = static_cast<int64_t>(from[kIngest].at(row));
      if (has_lists_) FillLists(row, cursor, e);
    });
    if (has_lists_) Advance(row, &cursor);
  }
}

void BlockRows::AppendTo(size_t skip, std::vector<Event>* events) const {
  ForEachRow([&](size_t row, const auto& fill) {
    if (!all_selected_ && !Visible(row)) return;
    if (skip > 0) {
      --skip;
      return;
    }
    fill(&events->emplace_back());
  });
}

void BlockRows::AppendTo(std::vector<StoredEvent>* events) const {
  events->reserve(events->size() + header_.rows);
  ForEachRow([&](size_t row, const auto& fill) {
    StoredEvent& stored = events->emplace_back();
    fill(&stored.event);
    stored.seq = columns_[kSeq].at(row);
  });
}

}  // namespace backstory
