// Item statistics: how often each outcome of an item happened, per hour. Values of the `cells` column family.
#ifndef BACKSTORY_STORE_CELL_CODEC_H_
#define BACKSTORY_STORE_CELL_CODEC_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "features/event.h"

namespace rocksdb {
class MergeOperator;
}  // namespace rocksdb

namespace backstory {

inline constexpr int64_t kCellMicros = int64_t{3600} * 1'000'000;
inline constexpr uint32_t kHoursPerRecord = 8192;  // one value holds about a year of an item

// Outcome code: 0 an exposure, else 1 + 16 * action type + value bin. Persisted.
uint32_t OutcomeOf(const Event& event);

struct Cell {
  uint32_t hour = 0;  // since the epoch
  uint32_t outcome = 0;
  int64_t count = 0;  // in a merge operand: the change
  bool operator==(const Cell&) const = default;
};
inline uint32_t HourOf(int64_t time_us) { return static_cast<uint32_t>(time_us / kCellMicros); }

// ns, item, hour / kHoursPerRecord.
std::string CellPrefix(std::string_view ns, uint64_t item_id);
std::string CellKey(std::string_view ns, uint64_t item_id, uint32_t hour);
bool ParseCellKey(std::string_view key, std::string* ns, uint64_t* item_id, uint32_t* first_hour);

// Cells sorted by (hour, outcome), each once.
std::string EncodeCells(const std::vector<Cell>& cells, uint32_t first_hour);
bool DecodeCells(std::string_view bytes, uint32_t first_hour, std::vector<Cell>* cells);  // appends

// Sorts, adds up equal cells, drops zeros.
void NormaliseCells(std::vector<Cell>* cells);

// Adds operands up. Its name is persisted.
std::shared_ptr<rocksdb::MergeOperator> NewCellMergeOperator();

}  // namespace backstory

#endif  // BACKSTORY_STORE_CELL_CODEC_H_
