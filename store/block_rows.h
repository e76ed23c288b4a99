// An event block taken apart into its columns, from which events are made row by row. Internal to store/; the functions
// of event_codec.h are built on it.
#ifndef BACKSTORY_STORE_BLOCK_ROWS_H_
#define BACKSTORY_STORE_BLOCK_ROWS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "store/byte_io.h"
#include "store/event_codec.h"

namespace backstory {

// The numeric columns of a block. Persisted: the order in which they are written.
enum BlockColumn : size_t {
  kTime,
  kId,
  kSeq,
  kIngest,
  kFlags,  // kind | tombstone << 2
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
  kBlockColumns
};
inline constexpr uint8_t kBlockVersion = 1;
inline constexpr uint64_t kTombstoneFlag = 4;
inline constexpr uint64_t kKindMask = 3;

// One column; most are constant, so a constant is not spread over the rows.
struct NumberColumn {
  bool constant = true;
  uint64_t value = 0;
  std::vector<uint64_t> rows;  // if not constant

  uint64_t at(size_t row) const { return constant ? value : rows.data()[row]; }
  bool zero() const { return constant && value == 0; }
};

bool ReadBlockHeader(ByteReader* reader, BlockHeader* header);

// Keeps its memory between blocks.
class BlockRows {
 public:
  // False if malformed. Keeps views into `block`, which must outlive the use of the rows.
  bool Decode(std::string_view block);
  // Which rows AppendTo takes; all until called. Returns their number.
  size_t Select(const BlockFilter& filter);
  // Appends the events of the selected rows but the first `skip` of them.
  void AppendTo(size_t skip, std::vector<Event>* events) const;
  void AppendTo(std::vector<StoredEvent>* events) const;  // every row, selected or not

 private:
  // Where the variable-length lists of a row start.
  struct Cursor {
    size_t exposure_raw = 0, context = 0, embedding = 0;
  };
  bool ReadLists(ByteReader* reader);
  bool WithinLimits() const;
  bool Visible(size_t row) const;
  void Advance(size_t row, Cursor* cursor) const;
  void FillLists(size_t row, const Cursor& cursor, Event* event) const;
  template <typename Take>  // Take(row, fill): fill(Event*) makes the row's event
  void ForEachRow(const Take& take) const;

  BlockHeader header_;
  std::array<NumberColumn, kBlockColumns> columns_;
  NumberColumn exposure_raw_, name_codes_, value_codes_, embeddings_;
  std::vector<std::string_view> scenes_, names_, values_;
  BlockFilter filter_;
  bool all_selected_ = true;
  bool has_lists_ = false;  // any exposure, scene, context or embedding
};

}  // namespace backstory

#endif  // BACKSTORY_STORE_BLOCK_ROWS_H_
