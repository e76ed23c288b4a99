// Partial tokens: column by column, so that the switch over sources is outside the loop over rows.
#include <algorithm>
#include <bit>
#include <cassert>

#include "features/field_ids.h"
#include "features/incremental.h"
#include "features/tokenizer.h"

namespace backstory {
namespace {

using internal::FieldIds;

// The rows of one channel out of a block, with their items (empty if no field wants them).
struct Block {
  std::vector<const HistoryRow*> rows;
  std::vector<const Item*> items;
};

const std::string* ContextValue(const HistoryRow& row, const std::string& name) {
  for (const ContextField& field : row.context) {
    if (field.name == name) return &field.value;
  }
  return nullptr;
}

void AppendValue(const SparseFieldConfig& field, const HistoryRow& row, FieldIds* ids) {
  switch (field.source) {
    case SparseSource::kItemId:
      return ids->Hashed(row.item_id);
    case SparseSource::kActionClass:
      return ids->Number(static_cast<uint64_t>(row.action_class));
    case SparseSource::kActionValue:
      return row.action == ActionType::kNone ? ids->Missing() : ids->Number(ValueBin(row.value));
    case SparseSource::kPosition:
      if (row.kind != EventKind::kExposure) return ids->Missing();
      return ids->Number(static_cast<uint64_t>(std::bit_width(uint64_t{row.position} + 1)) - 1);
    case SparseSource::kScene:
      return ids->Text(row.scene);
    case SparseSource::kEventContext: {
      const std::string* value = ContextValue(row, field.attribute);
      return value == nullptr ? ids->Missing() : ids->Text(*value);
    }
    case SparseSource::kHourOfDay:
      return ids->Number(internal::HourOfDay(row.time_us));
    case SparseSource::kDayOfWeek:
      return ids->Number(internal::DayOfWeek(row.time_us));
    default:
      assert(false && "ValidateTokenizerConfig refuses sources of full tokens among partial fields");
      return ids->Missing();
  }
}

void AppendColumn(const SparseFieldConfig& field, const TokenizerConfig& config, const Block& block,
                  SparseColumn* column) {
  FieldIds ids(field, config, &column->ids);
  column->offsets.reserve(column->offsets.size() + block.rows.size());
  const bool of_item = internal::IsImmutableItemSource(field.source);
  for (size_t i = 0; i < block.rows.size(); ++i) {
    if (of_item) {
      ids.OfItem(field.source, block.items[i]);
    } else {
      AppendValue(field, *block.rows[i], &ids);
    }
    column->offsets.push_back(static_cast<uint32_t>(column->ids.size()));
  }
}

void AppendBlock(const Block& block, const TokenizerConfig& config, ChannelRows* channel) {
  channel->tokens.sparse.resize(config.partial.size());
  for (size_t f = 0; f < config.partial.size(); ++f) {
    AppendColumn(config.partial[f], config, block, &channel->tokens.sparse[f]);
  }
  channel->tokens.rows += block.rows.size();
  for (const HistoryRow* row : block.rows) {
    channel->time_us.push_back(row->time_us);
    channel->action.push_back(row->action_class);
    channel->tie.push_back(row->tie);
    channel->event_id.push_back(row->event_id);
  }
}

bool HasClass(const ChannelConfig& channel, int32_t action_class) {
  if (channel.action_classes.empty()) return true;
  for (int32_t c : channel.action_classes) {
    if (c == action_class) return true;
  }
  return false;
}

// How many of the channel's rows come from history rows [0, rows): those at or before the last of them.
size_t ChannelRowsWithin(const ChannelRows& channel, std::span<const HistoryRow> rows, size_t count) {
  if (count == 0) return 0;
  const HistoryRow& last = rows[count - 1];
  size_t low = 0, high = channel.time_us.size();
  while (low < high) {
    const size_t mid = low + (high - low) / 2;
    const bool within = channel.time_us[mid] != last.time_us ? channel.time_us[mid] < last.time_us
                                                             : channel.event_id[mid] <= last.event_id;
    (within ? low : high) = within ? mid + 1 : mid;
  }
  return low;
}

void TruncateChannel(size_t rows, ChannelRows* channel) {
  channel->tokens.rows = rows;
  for (SparseColumn& column : channel->tokens.sparse) {
    column.offsets.resize(rows + 1);
    column.ids.resize(column.offsets.back());
  }
  channel->time_us.resize(rows);
  channel->action.resize(rows);
  channel->tie.resize(rows);
  channel->event_id.resize(rows);
}

}  // namespace

std::vector<size_t> UpdateTokens(std::span<const HistoryRow> rows, size_t first_changed, int64_t now_us,
                                 const ItemLookup& items, const TokenizerConfig& config, TokenizedHistory* tokens) {
  tokens->channels.resize(config.channels.size());
  const size_t closed = ClosedRows(rows, now_us);
  const size_t shown = config.open_rows == OpenRows::kHide ? closed : rows.size();
  const size_t kept = std::min({first_changed, tokens->rows, shown});
  bool wants_items = false;
  for (const SparseFieldConfig& field : config.partial) {
    wants_items = wants_items || internal::IsImmutableItemSource(field.source);
  }
  std::vector<const Item*> item_of;
  if (wants_items) {
    item_of.reserve(shown - kept);
    for (size_t i = kept; i < shown; ++i) item_of.push_back(items ? items(rows[i].item_id) : nullptr);
  }
  std::vector<size_t> first;
  for (size_t c = 0; c < config.channels.size(); ++c) {
    ChannelRows* channel = &tokens->channels[c];
    TruncateChannel(ChannelRowsWithin(*channel, rows, kept), channel);
    first.push_back(channel->tokens.rows);
    Block block;
    for (size_t i = kept; i < shown; ++i) {
      if (!HasClass(config.channels[c], rows[i].action_class)) continue;
      block.rows.push_back(&rows[i]);
      if (wants_items) block.items.push_back(item_of[i - kept]);
    }
    AppendBlock(block, config, channel);
    channel->closed = ChannelRowsWithin(*channel, rows, closed);
  }
  tokens->rows = shown;
  return first;
}

std::vector<ChannelRows> TokenizeHistory(std::span<const HistoryRow> rows, int64_t now_us, const ItemLookup& items,
                                         const TokenizerConfig& config) {
  TokenizedHistory tokens;
  UpdateTokens(rows, 0, now_us, items, config, &tokens);
  return std::move(tokens.channels);
}

}  // namespace backstory
