#include "store/cell_codec.h"

#include <rocksdb/merge_operator.h>

#include <algorithm>

#include "features/item.h"
#include "store/byte_io.h"

namespace backstory {
namespace {

// Values relative to their record do not depend on its first hour, so operands are decoded with hour 0.
class CellMergeOperator : public rocksdb::MergeOperator {
 public:
  const char* Name() const override { return "backstory.cells.1"; }

  bool FullMergeV2(const MergeOperationInput& in, MergeOperationOutput* out) const override {
    std::vector<Cell> cells;
    if (in.existing_value != nullptr && !DecodeCells(in.existing_value->ToStringView(), 0, &cells)) return false;
    for (const rocksdb::Slice& operand : in.operand_list) {
      if (!DecodeCells(operand.ToStringView(), 0, &cells)) return false;
    }
    NormaliseCells(&cells);
    out->new_value = EncodeCells(cells, 0);
    return true;
  }

  bool PartialMergeMulti(const rocksdb::Slice& /*key*/, const std::deque<rocksdb::Slice>& operands, std::string* merged,
                         rocksdb::Logger* /*logger*/) const override {
    std::vector<Cell> cells;
    for (const rocksdb::Slice& operand : operands) {
      if (!DecodeCells(operand.ToStringView(), 0, &cells)) return false;
    }
    NormaliseCells(&cells);
    *merged = EncodeCells(cells, 0);
    return true;
  }
};

}  // namespace

uint32_t OutcomeOf(const Event& event) {
  if (event.kind == EventKind::kExposure) return 0;
  return 1 + 16 * static_cast<uint32_t>(event.action) + ValueBin(event.value);
}

std::string CellPrefix(std::string_view ns, uint64_t item_id) {
  std::string key;
  key.push_back(static_cast<char>(ns.size()));
  key += ns;
  PutBig(&key, item_id, 8);
  return key;
}

std::string CellKey(std::string_view ns, uint64_t item_id, uint32_t hour) {
  std::string key = CellPrefix(ns, item_id);
  PutBig(&key, hour / kHoursPerRecord, 4);
  return key;
}

bool ParseCellKey(std::string_view key, std::string* ns, uint64_t* item_id, uint32_t* first_hour) {
  if (key.empty()) return false;
  const size_t ns_bytes = static_cast<uint8_t>(key[0]);
  if (key.size() != 1 + ns_bytes + 12) return false;
  *ns = key.substr(1, ns_bytes);
  *item_id = GetBig(key.data() + 1 + ns_bytes, 8);
  *first_hour = static_cast<uint32_t>(GetBig(key.data() + 1 + ns_bytes + 8, 4)) * kHoursPerRecord;
  return true;
}

std::string EncodeCells(const std::vector<Cell>& cells, uint32_t first_hour) {
  std::string out;
  uint32_t hour = first_hour;
  for (const Cell& cell : cells) {
    PutVarint(&out, cell.hour - hour);
    PutVarint(&out, cell.outcome);
    PutVarint(&out, ZigZag(cell.count));
    hour = cell.hour;
  }
  return out;
}

bool DecodeCells(std::string_view bytes, uint32_t first_hour, std::vector<Cell>* cells) {
  ByteReader reader(bytes);
  uint64_t hour = first_hour;
  while (reader.remaining() > 0) {
    uint64_t step = 0, outcome = 0, count = 0;
    if (!reader.ReadVarint(&step) || !reader.ReadVarint(&outcome) || !reader.ReadVarint(&count)) return false;
    if (step >= kHoursPerRecord || outcome > UINT32_MAX) return false;
    hour += step;
    if (hour - first_hour >= kHoursPerRecord) return false;
    cells->push_back({static_cast<uint32_t>(hour), static_cast<uint32_t>(outcome), UnZigZag(count)});
  }
  return true;
}

void NormaliseCells(std::vector<Cell>* cells) {
  std::sort(cells->begin(), cells->end(),
            [](const Cell& a, const Cell& b) { return std::tie(a.hour, a.outcome) < std::tie(b.hour, b.outcome); });
  size_t kept = 0;
  for (size_t i = 0; i < cells->size();) {
    Cell sum = (*cells)[i++];
    while (i < cells->size() && (*cells)[i].hour == sum.hour && (*cells)[i].outcome == sum.outcome)
      sum.count += (*cells)[i++].count;
    if (sum.count != 0) (*cells)[kept++] = sum;
  }
  cells->resize(kept);
}

std::shared_ptr<rocksdb::MergeOperator> NewCellMergeOperator() { return std::make_shared<CellMergeOperator>(); }

}  // namespace backstory
