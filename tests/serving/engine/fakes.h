// Stand-ins for everything the engine is given: a history store in memory that keeps the contract of
// store/history_store.h, a catalog, and a model whose scores depend on every bit it was shown.
#ifndef BACKSTORY_TESTS_SERVING_ENGINE_FAKES_H_
#define BACKSTORY_TESTS_SERVING_ENGINE_FAKES_H_

#include <algorithm>
#include <atomic>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "features/hash.h"
#include "models/grab/model.h"
#include "serving/engine/served_model.h"
#include "store/catalog.h"
#include "store/history_store.h"

namespace backstory::testing {

// Histories in maps, one mutex. Retain, slots, export and checkpoint are refused.
class FakeHistoryStore : public HistoryStore {
 public:
  absl::StatusOr<AppendResult> Append(const UserKey& user, std::span<const Event> events, int64_t now_us,
                                      Durability) override {
    std::lock_guard lock(mutex_);
    if (!write_status.ok()) return write_status;
    return AppendLocked(user, events, now_us);
  }

  absl::StatusOr<std::vector<AppendResult>> AppendMany(std::span<const UserBatch> batches, int64_t now_us,
                                                       Durability) override {
    std::lock_guard lock(mutex_);
    if (!write_status.ok()) return write_status;
    std::vector<AppendResult> results;
    for (const UserBatch& batch : batches) results.push_back(AppendLocked(batch.user, batch.events, now_us));
    return results;
  }

  absl::StatusOr<UserHead> Head(const UserKey& user) override {
    std::lock_guard lock(mutex_);
    ++heads;
    if (!read_status.ok()) return read_status;
    return HeadOf(users_[Primary(user)]);
  }

  absl::StatusOr<HistoryTail> Tail(const UserKey& user, uint64_t after_seq) override {
    std::lock_guard lock(mutex_);
    if (!read_status.ok()) return read_status;
    const User& history = users_[Primary(user)];
    HistoryTail tail;
    tail.head = HeadOf(history);
    tail.rebuild = after_seq < history.epoch_seq || after_seq > history.seq;
    for (const auto& [id, stored] : history.events) {
      if (stored.event.tombstone || stored.seq <= after_seq) continue;
      tail.events.push_back(stored.event);
      tail.oldest_changed_us = std::min(tail.oldest_changed_us, stored.event.time_us);
    }
    std::sort(tail.events.begin(), tail.events.end(), CanonicalLess);
    return tail;
  }

  absl::StatusOr<Snapshot> Read(const UserKey& user, const HistoryRange& range) override {
    std::lock_guard lock(mutex_);
    ++reads;
    if (!read_status.ok()) return read_status;
    const User& history = users_[Primary(user)];
    Snapshot snapshot{HeadOf(history), {}};
    for (const auto& [id, stored] : history.events) {
      const Event& event = stored.event;
      if (event.tombstone || event.time_us < range.from_us || event.time_us >= range.as_of.event_time_us) continue;
      if (event.ingest_time_us > range.as_of.known_by_us) continue;
      snapshot.events.push_back(event);
    }
    std::sort(snapshot.events.begin(), snapshot.events.end(), CanonicalLess);
    if (snapshot.events.size() > range.newest) {
      snapshot.events.erase(snapshot.events.begin(), snapshot.events.end() - static_cast<ptrdiff_t>(range.newest));
    }
    return snapshot;
  }

  absl::StatusOr<uint64_t> Delete(const UserKey& user, const DeleteSelector& what, int64_t) override {
    std::lock_guard lock(mutex_);
    User& history = users_[Primary(user)];
    const uint64_t deleted = std::erase_if(history.events, [&what](const auto& entry) {
      const Event& event = entry.second.event;
      return what.all || std::count(what.event_ids.begin(), what.event_ids.end(), event.event_id) > 0 ||
             (what.until_us > what.from_us && event.time_us >= what.from_us && event.time_us < what.until_us) ||
             (what.has_item && event.item_id == what.item_id);
    });
    if (deleted > 0) RaiseEpoch(&history);
    return deleted;
  }

  absl::Status Merge(const UserKey& alias, const UserKey& primary, int64_t) override {
    std::lock_guard lock(mutex_);
    const UserKey from = Primary(alias), to = Primary(primary);
    if (from == to) return absl::OkStatus();
    User& source = users_[from];
    User& target = users_[to];
    for (const auto& [id, stored] : source.events) target.events.emplace(id, stored);
    source = {};
    aliases_[from] = to;
    RaiseEpoch(&target);
    return absl::OkStatus();
  }

  absl::StatusOr<uint64_t> Retain(const UserKey&, uint64_t) override { return absl::UnimplementedError("fake"); }
  absl::Status ForEachUser(std::string_view, const std::function<bool(const UserKey&, const UserHead&)>&) override {
    return absl::UnimplementedError("fake");
  }
  absl::Status ExportSlot(int, const std::function<absl::Status(std::string_view)>&) override {
    return absl::UnimplementedError("fake");
  }
  absl::Status ImportSlot(int, const std::function<absl::StatusOr<std::string>()>&) override {
    return absl::UnimplementedError("fake");
  }
  absl::StatusOr<ItemCounts> CountsBefore(std::string_view, uint64_t item_id, int64_t before_us,
                                          int64_t granularity_us) override {
    std::lock_guard lock(mutex_);
    if (!read_status.ok()) return read_status;
    ItemCounts counts;
    const int64_t limit = before_us / granularity_us * granularity_us;
    for (const auto& [key, history] : users_) {
      for (const auto& [id, stored] : history.events) {
        const Event& e = stored.event;
        if (e.item_id == item_id && e.kind == EventKind::kExposure && !e.tombstone && e.time_us < limit) {
          ++counts.exposures;
        }
      }
    }
    return counts;
  }
  absl::Status Checkpoint(const std::string&) override { return absl::UnimplementedError("fake"); }
  absl::StatusOr<Stats> GetStats() override { return Stats{}; }
  absl::Status Compact() override { return absl::OkStatus(); }
  absl::Status WriteHealth() override { return write_status; }

  std::atomic<int> reads{0}, heads{0};
  absl::Status read_status, write_status;  // set before use from several threads

 private:
  struct Stored {
    Event event;
    uint64_t seq = 0;
  };
  struct User {
    std::map<uint64_t, Stored> events;
    uint64_t seq = 0, epoch = 0, epoch_seq = 0;
  };

  UserKey Primary(const UserKey& user) const {
    const auto it = aliases_.find(user);
    return it == aliases_.end() ? user : it->second;
  }

  static void RaiseEpoch(User* history) {
    ++history->epoch;
    history->epoch_seq = ++history->seq;
  }

  static UserHead HeadOf(const User& history) {
    UserHead head;
    head.seq = history.seq;
    head.epoch = history.epoch;
    for (const auto& [id, stored] : history.events) {
      if (stored.event.tombstone) continue;
      ++head.events;
      head.newest_us = std::max(head.newest_us, stored.event.time_us);
      head.hash += HashU64(id, stored.event.revision);
    }
    return head;
  }

  AppendResult AppendLocked(const UserKey& user, std::span<const Event> events, int64_t now_us) {
    User& history = users_[Primary(user)];
    AppendResult result;
    result.reasons.resize(events.size());
    std::vector<std::pair<uint64_t, bool>> changed;  // id, correction
    for (Event event : events) {
      event.ingest_time_us = 0;
      const auto found = history.events.find(event.event_id);
      EventOutcome outcome = EventOutcome::kAccepted;
      if (event.time_us > now_us + int64_t{86'400} * 1'000'000) {
        outcome = EventOutcome::kRejected;
      } else if (found != history.events.end() && event.revision <= found->second.event.revision) {
        Event stored = found->second.event;
        stored.ingest_time_us = 0;
        outcome = event.revision < stored.revision ? EventOutcome::kStale
                  : event == stored                ? EventOutcome::kDuplicate
                                                   : EventOutcome::kConflict;
      }
      result.outcomes.push_back(outcome);
      if (outcome != EventOutcome::kAccepted) {
        ++(outcome == EventOutcome::kRejected   ? result.rejected
           : outcome == EventOutcome::kConflict ? result.conflict
                                                : result.duplicate);
        continue;
      }
      changed.emplace_back(event.event_id, found != history.events.end());
      event.ingest_time_us = now_us;
      history.events[event.event_id].event = event;
      ++result.accepted;
    }
    if (!changed.empty()) ++history.seq;
    for (const auto& [id, correction] : changed) {
      history.events[id].seq = history.seq;
      if (correction && history.epoch_seq != history.seq) ++history.epoch, history.epoch_seq = history.seq;
    }
    result.seq = history.seq;
    return result;
  }

  mutable std::mutex mutex_;
  std::map<UserKey, User> users_;       // guarded by mutex_
  std::map<UserKey, UserKey> aliases_;  // guarded by mutex_
};

class FakeCatalog : public Catalog {
 public:
  absl::Status Upsert(std::string_view ns, std::span<const Item> items, bool) override {
    std::lock_guard lock(mutex_);
    for (const Item& item : items) items_[std::string(ns)][item.item_id] = std::make_shared<const Item>(item);
    ++version_;
    return absl::OkStatus();
  }
  std::shared_ptr<const Item> Find(std::string_view ns, uint64_t item_id) const override {
    std::lock_guard lock(mutex_);
    const auto found = items_.find(ns);
    if (found == items_.end()) return nullptr;
    const auto item = found->second.find(item_id);
    return item == found->second.end() ? nullptr : item->second;
  }
  void ForEach(std::string_view ns, const std::function<bool(const Item&)>& visit) const override {
    std::lock_guard lock(mutex_);
    const auto found = items_.find(ns);
    if (found == items_.end()) return;
    for (const auto& [id, item] : found->second) {
      if (!visit(*item)) return;
    }
  }
  uint64_t Size(std::string_view ns) const override {
    std::lock_guard lock(mutex_);
    const auto found = items_.find(ns);
    return found == items_.end() ? 0 : found->second.size();
  }
  uint64_t Version(std::string_view) const override {
    std::lock_guard lock(mutex_);
    return version_;
  }

 private:
  mutable std::mutex mutex_;
  std::map<std::string, std::map<uint64_t, std::shared_ptr<const Item>>, std::less<>> items_;  // guarded by mutex_
  uint64_t version_ = 1;                                                                       // guarded by mutex_
};

// Chains a hash over rows: any row that differs, is missing, or comes in another order changes every later one.
class FakeKv : public grab::UserKv {
 public:
  explicit FakeKv(size_t channels) : chain(channels) {}
  size_t Rows(int channel) const override { return chain[static_cast<size_t>(channel)].size(); }
  size_t Bytes() const override {
    size_t bytes = 0;
    for (const auto& rows : chain) bytes += rows.size() * bytes_per_row;
    return bytes;
  }
  void Truncate(int channel, size_t rows) override { chain[static_cast<size_t>(channel)].resize(rows); }
  std::vector<std::vector<uint64_t>> chain;
  size_t bytes_per_row = 1024;
};

class FakeModel : public grab::Model {
 public:
  explicit FakeModel(grab::Config config, std::string state_id = "fakefakefakefake")
      : config_(std::move(config)), state_id_(std::move(state_id)) {}
  const grab::Config& config() const override { return config_; }
  const std::string& state_id() const override { return state_id_; }
  size_t parameter_bytes() const override { return 1000; }
  bool ExtendsAtOnce() const override { return extends_at_once; }
  int lanes() const override { return lane_count; }
  std::unique_ptr<grab::UserKv> NewState() const override {
    return std::make_unique<FakeKv>(config_.tokenizer.channels.size());
  }

  // INTERNAL if rows that were appended before are not those given now.
  absl::Status Extend(std::span<const ChannelRows> tokens, grab::UserKv* kv) const override {
    ++extends;
    if (!extend_status.ok()) return extend_status;
    if (on_extend) on_extend();
    auto& chain = static_cast<FakeKv*>(kv)->chain;
    for (size_t c = 0; c < tokens.size(); ++c) {
      uint64_t hash = 0;
      for (size_t i = 0; i < tokens[c].time_us.size(); ++i) {
        hash = RowHash(tokens[c], i, hash);
        if (i >= chain[c].size()) {
          chain[c].push_back(hash);
        } else if (chain[c][i] != hash) {
          return absl::InternalError(absl::StrCat("row ", i, " of channel ", c, " changed below the cache"));
        }
      }
    }
    return absl::OkStatus();
  }

  absl::Status Score(std::span<const grab::ScoreSegment> segments) const override {
    ++scores;
    segments_scored += segments.size();
    if (on_score) on_score(segments);
    for (const grab::ScoreSegment& segment : segments) {
      uint64_t seen = HashU64(static_cast<uint64_t>(segment.candidates->now_us), 7);
      for (size_t c = 0; c < segment.visible_rows.size(); ++c) {
        const size_t rows = segment.visible_rows[c];
        const size_t first = segment.first_row.empty() ? 0 : segment.first_row[c];
        if (rows > first) seen = HashU64(static_cast<const FakeKv*>(segment.kv)->chain[c][rows - 1] + first, seen);
      }
      for (float dense : segment.candidates->user.dense) seen = HashU64(Bits(dense), seen);
      for (const SparseColumn& column : segment.candidates->user.sparse) {
        for (uint32_t id : column.ids) seen = HashU64(id, seen);
      }
      for (size_t i = 0; i < segment.candidates->item.rows; ++i) {
        for (size_t t = 0; t < config_.tasks.size(); ++t) {
          segment.logits[i * config_.tasks.size() + t] = Logit(*segment.candidates, i, HashU64(t, seen));
        }
        if (segment.explain_top > 0) segment.attributions->push_back(Explain(segment));
      }
    }
    return absl::OkStatus();
  }

  std::function<void(std::span<const grab::ScoreSegment>)> on_score;
  std::function<void()> on_extend;
  absl::Status extend_status;
  bool nan_scores = false;
  bool extends_at_once = false;
  int lane_count = 0;
  mutable std::atomic<int> scores{0}, extends{0};
  mutable std::atomic<size_t> segments_scored{0};

 private:
  static uint64_t Bits(float value) {
    return HashBytes(std::string_view(reinterpret_cast<const char*>(&value), sizeof(value)), 0);
  }
  static uint64_t RowHash(const ChannelRows& rows, size_t i, uint64_t hash) {
    hash = HashU64(static_cast<uint64_t>(rows.time_us[i]), hash);
    hash = HashU64(static_cast<uint64_t>(rows.action[i]), hash);
    hash = HashU64(static_cast<uint64_t>(rows.tie[i]), hash);
    for (const SparseColumn& column : rows.tokens.sparse) {
      for (uint32_t k = column.offsets[i]; k < column.offsets[i + 1]; ++k) hash = HashU64(column.ids[k], hash);
    }
    return hash;
  }
  float Logit(const CandidateTokens& candidates, size_t i, uint64_t hash) const {
    if (nan_scores) return std::numeric_limits<float>::quiet_NaN();
    for (const SparseColumn& column : candidates.item.sparse) {
      for (uint32_t k = column.offsets[i]; k < column.offsets[i + 1]; ++k) hash = HashU64(column.ids[k], hash);
    }
    const size_t width = candidates.item.dense.size() / candidates.item.rows;
    for (size_t k = 0; k < width; ++k) hash = HashU64(Bits(candidates.item.dense[i * width + k]), hash);
    return static_cast<float>(hash >> 40) * 0x1p-21f - 4.0f;
  }
  static std::vector<grab::Attribution> Explain(const grab::ScoreSegment& segment) {
    std::vector<grab::Attribution> top;
    for (size_t c = 0; c < segment.visible_rows.size(); ++c) {
      for (int k = 0; k < segment.explain_top && static_cast<size_t>(k) < segment.visible_rows[c]; ++k) {
        const auto row = static_cast<uint32_t>(segment.visible_rows[c] - 1 - static_cast<size_t>(k));
        top.push_back({static_cast<int>(c), row, 0, 0.5f / static_cast<float>(k + 1)});
      }
    }
    return top;
  }

  const grab::Config config_;
  const std::string state_id_;
};

// Two channels (everything, clicks), fields from the item and from the event, user and item statistics.
inline grab::Config FakeConfig(OpenRows open_rows = OpenRows::kAsKnown, int64_t label_window_us = 50'000'000) {
  grab::Config config;
  config.name = "fake";
  TokenizerConfig& t = config.tokenizer;
  t.partial = {{"item", SparseSource::kItemId, "", "item", 1000},
               {"genre", SparseSource::kItemCategories, "", "genre", 50},
               {"class", SparseSource::kActionClass, "", "class", 16}};
  t.full = {{"item", SparseSource::kItemId, "", "item", 1000}, {"user", SparseSource::kUserId, "", "user", 1000}};
  t.full_dense = {{"user_rate", DenseSource::kUserRate},
                  {"user_count", DenseSource::kUserLogCount},
                  {"gap", DenseSource::kUserLogGap},
                  {"item_count", DenseSource::kItemLogCount},
                  {"taste", DenseSource::kUserCategoryRate}};
  t.actions = {{ActionType::kLike, -3.4e38f, 3.4e38f, 2}, {ActionType::kClick, -3.4e38f, 3.4e38f, 1}};
  t.label = {ActionType::kClick};
  t.channels = {{"all", {}}, {"clicked", {1, 2}}};
  t.label_window_us = label_window_us;
  t.open_rows = open_rows;
  return config;
}

inline std::shared_ptr<const ServedModel> Served(std::shared_ptr<const grab::Model> model, std::string version = "1") {
  auto served = std::make_shared<ServedModel>();
  served->name = model->config().name;
  served->version = std::move(version);
  served->content_hash = "hash";
  served->calibration.number = 1;
  served->model = std::move(model);
  return served;
}

}  // namespace backstory::testing

#endif  // BACKSTORY_TESTS_SERVING_ENGINE_FAKES_H_
