#include "store/block_editor.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "store/byte_io.h"

namespace backstory {
namespace {

bool StoredLess(const StoredEvent& a, const StoredEvent& b) { return CanonicalLess(a.event, b.event); }

}  // namespace

absl::Status BlockEditor::Damaged(std::string_view key) const {
  return absl::DataLossError(absl::StrCat("store ", database_->directory(), ": history record at ",
                                          ParseBlockKey(key).time_us, " us is malformed; ",
                                          DamageAdvice(database_->directory())));
}

absl::StatusOr<BlockEditor::Tail> BlockEditor::ReadTail() const {
  Tail tail;
  auto it = database_->Scan(Family::kHistory);
  const std::string first = MakeTailKey(prefix_, 0);
  for (it->Seek(first); it->Valid(); it->Next()) {
    const std::string_view key = it->key().ToStringView();
    if (!key.starts_with(prefix_) || !IsTailKey(key)) break;
    if (!DecodeBlock(it->value().ToStringView(), &tail.events)) {
      return absl::DataLossError(absl::StrCat("store ", database_->directory(), ": tail record of commit ",
                                              GetBig(key.data() + kUserPrefixBytes + 1, 8), " is malformed; ",
                                              DamageAdvice(database_->directory())));
    }
    tail.keys.emplace_back(key);
  }
  if (!it->status().ok()) return FromRocks(it->status(), database_->directory());
  std::sort(tail.events.begin(), tail.events.end(), StoredLess);
  return tail;
}

absl::StatusOr<std::vector<StoredEvent>> BlockEditor::ReadAll() const {
  std::vector<StoredEvent> events;
  auto it = database_->Scan(Family::kHistory);
  for (it->Seek(MakeBlockKey(prefix_, {})); it->Valid(); it->Next()) {
    const std::string_view key = it->key().ToStringView();
    if (!key.starts_with(prefix_) || !IsBlockKey(key)) break;
    if (!DecodeBlock(it->value().ToStringView(), &events)) return Damaged(key);
  }
  if (!it->status().ok()) return FromRocks(it->status(), database_->directory());
  absl::StatusOr<Tail> tail = ReadTail();
  if (!tail.ok()) return tail.status();
  const auto middle = static_cast<std::ptrdiff_t>(events.size());
  events.insert(events.end(), std::make_move_iterator(tail->events.begin()),
                std::make_move_iterator(tail->events.end()));
  std::inplace_merge(events.begin(), events.begin() + middle, events.end(), StoredLess);
  return events;
}

absl::StatusOr<std::vector<std::string>> BlockEditor::ReadKeys() const {
  std::vector<std::string> keys;
  auto it = database_->Scan(Family::kHistory);
  for (it->Seek(prefix_); it->Valid() && it->key().starts_with(prefix_); it->Next())
    keys.push_back(it->key().ToString());
  if (!it->status().ok()) return FromRocks(it->status(), database_->directory());
  return keys;
}

absl::StatusOr<std::optional<StoredEvent>> BlockEditor::Find(BlockKey key) {
  const auto in_found = [&]() -> std::optional<StoredEvent> {
    const auto it = std::lower_bound(found_.begin(), found_.end(), key,
                                     [](const StoredEvent& e, const BlockKey& k) { return KeyOf(e.event) < k; });
    if (it == found_.end() || KeyOf(it->event) != key) return std::nullopt;
    return *it;
  };
  if (!found_.empty()) {
    if (std::optional<StoredEvent> hit = in_found()) return hit;
  }
  auto it = database_->Scan(Family::kHistory);
  it->SeekForPrev(MakeBlockKey(prefix_, key));
  if (!it->status().ok()) return FromRocks(it->status(), database_->directory());
  if (!it->Valid() || !it->key().starts_with(prefix_) || !IsBlockKey(it->key().ToStringView())) return std::nullopt;
  found_.clear();
  if (!DecodeBlock(it->value().ToStringView(), &found_)) return Damaged(it->key().ToStringView());
  return in_found();
}

absl::Status BlockEditor::Apply(const std::vector<StoredEvent>& upserts, const std::vector<BlockKey>& removals,
                                rocksdb::WriteBatch* batch) {
  auto it = database_->Scan(Family::kHistory);
  const auto on_block = [&] {
    return it->Valid() && it->key().starts_with(prefix_) && IsBlockKey(it->key().ToStringView());
  };
  size_t up = 0, down = 0;
  while (up < upserts.size() || down < removals.size()) {
    BlockKey point = up < upserts.size() ? KeyOf(upserts[up].event) : removals[down];
    if (down < removals.size()) point = std::min(point, removals[down]);
    it->SeekForPrev(MakeBlockKey(prefix_, point));
    if (!on_block()) it->Seek(MakeBlockKey(prefix_, {}));  // before the first block: into the first block
    std::string old_key;
    std::vector<StoredEvent> events;
    if (on_block()) {
      old_key = it->key().ToString();
      if (!DecodeBlock(it->value().ToStringView(), &events)) return Damaged(old_key);
      it->Next();
    }
    if (!it->status().ok()) return FromRocks(it->status(), database_->directory());
    const bool bounded = !old_key.empty() && on_block();
    const BlockKey end = bounded ? ParseBlockKey(it->key().ToStringView()) : BlockKey{};
    size_t up_end = up, down_end = down;
    while (up_end < upserts.size() && (!bounded || KeyOf(upserts[up_end].event) < end)) ++up_end;
    while (down_end < removals.size() && (!bounded || removals[down_end] < end)) ++down_end;
    std::erase_if(events, [&](const StoredEvent& e) {
      return std::binary_search(removals.begin() + static_cast<std::ptrdiff_t>(down),
                                removals.begin() + static_cast<std::ptrdiff_t>(down_end), KeyOf(e.event));
    });
    const auto middle = static_cast<std::ptrdiff_t>(events.size());
    events.insert(events.end(), upserts.begin() + static_cast<std::ptrdiff_t>(up),
                  upserts.begin() + static_cast<std::ptrdiff_t>(up_end));
    std::inplace_merge(events.begin(), events.begin() + middle, events.end(), StoredLess);
    WriteBlocks(events, old_key, batch);
    edited_[old_key] = std::move(events);
    up = up_end;
    down = down_end;
  }
  return absl::OkStatus();
}

void BlockEditor::WriteBlocks(const std::vector<StoredEvent>& events, const std::string& old_key,
                              rocksdb::WriteBatch* batch) {
  rocksdb::ColumnFamilyHandle* history = database_->family(Family::kHistory);
  bool kept = false;
  for (size_t first = 0; first < events.size();) {
    const size_t left = events.size() - first;
    const size_t rows = left <= kBlockRowsSplit ? left : kBlockRowsTarget;
    const std::string key = MakeBlockKey(prefix_, KeyOf(events[first].event));
    kept |= key == old_key;
    batch->Put(history, key, EncodeBlock({events.data() + first, rows}));
    first += rows;
  }
  if (!old_key.empty() && !kept) batch->Delete(history, old_key);
}

absl::StatusOr<int64_t> BlockEditor::NewestLive() const {
  int64_t newest = -1;
  const auto scan = [&newest](const std::vector<StoredEvent>& events) {
    for (const StoredEvent& e : events) {
      if (!e.event.tombstone) newest = std::max(newest, e.event.time_us);
    }
  };
  if (const auto fresh = edited_.find(""); fresh != edited_.end()) scan(fresh->second);
  auto it = database_->Scan(Family::kHistory);
  for (it->SeekForPrev(MakeBlockKey(prefix_, {INT64_MAX, UINT64_MAX}));
       newest < 0 && it->Valid() && it->key().starts_with(prefix_) && IsBlockKey(it->key().ToStringView());
       it->Prev()) {
    if (const auto edit = edited_.find(it->key().ToString()); edit != edited_.end()) {
      scan(edit->second);
      continue;
    }
    std::vector<StoredEvent> events;
    if (!DecodeBlock(it->value().ToStringView(), &events)) return Damaged(it->key().ToStringView());
    scan(events);
  }
  if (!it->status().ok()) return FromRocks(it->status(), database_->directory());
  return newest;
}

}  // namespace backstory
