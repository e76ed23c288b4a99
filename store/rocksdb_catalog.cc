// The catalog on the store's database: every item in memory, every upsert in the common log.
#include <algorithm>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "store/byte_io.h"
#include "store/item_codec.h"
#include "store/limits.h"
#include "store/store_core.h"

namespace backstory {
namespace {

constexpr size_t kItemsPerUpsertMax = 100'000;

std::string VersionKey(std::string_view ns) { return absl::StrCat("catalog version ", std::string(ns)); }

// Items that an upsert replaced, kept for those who found them before it. Readers hold the one that was the newest when
// they looked, and each holds the next: an item goes with the last reader that may know it. So finding a thousand items
// takes one reference and not a thousand, which all threads would take from each other.
struct Replaced {
  ~Replaced() {
    // Not recursive: a reader that holds on for long has many behind it.
    while (next != nullptr && next.use_count() == 1) next = std::exchange(next->next, nullptr);
  }
  std::vector<std::shared_ptr<const Item>> items;
  std::shared_ptr<Replaced> next;
};

class RocksDbCatalog : public Catalog {
 public:
  explicit RocksDbCatalog(std::shared_ptr<StoreCore> core) : core_(std::move(core)) {}

  absl::Status Load();
  absl::Status Upsert(std::string_view ns, std::span<const Item> items, bool allow_immutable_change) override;

  std::shared_ptr<const Item> Find(std::string_view ns, uint64_t item_id) const override {
    std::shared_lock<std::shared_mutex> lock(mutex_);
    const Namespace* space = FindNamespace(ns);
    if (space == nullptr) return nullptr;
    const auto item = space->items.find(item_id);
    return item == space->items.end() ? nullptr : item->second;
  }

  Pin FindMany(std::string_view ns, std::span<const uint64_t> item_ids, std::span<const Item*> items) const override {
    constexpr size_t kAhead = 8;  // misses of the processor's cache that overlap
    std::shared_lock<std::shared_mutex> lock(mutex_);
    const Namespace* space = FindNamespace(ns);
    for (size_t i = 0; i < item_ids.size(); ++i) {
      items[i] = nullptr;
      if (space == nullptr) continue;
      if (i + kAhead < item_ids.size()) space->items.prefetch(item_ids[i + kAhead]);
      const auto item = space->items.find(item_ids[i]);
      if (item != space->items.end()) items[i] = item->second.get();
    }
    return replaced_;
  }

  void ForEach(std::string_view ns, const std::function<bool(const Item&)>& visit) const override {
    std::vector<std::shared_ptr<const Item>> items;
    {
      std::shared_lock<std::shared_mutex> lock(mutex_);
      const Namespace* space = FindNamespace(ns);
      if (space == nullptr) return;
      items.reserve(space->items.size());
      for (const auto& [id, item] : space->items) items.push_back(item);
    }
    std::sort(items.begin(), items.end(), [](const auto& a, const auto& b) { return a->item_id < b->item_id; });
    for (const auto& item : items) {
      if (!visit(*item)) return;
    }
  }

  uint64_t Size(std::string_view ns) const override {
    std::shared_lock<std::shared_mutex> lock(mutex_);
    const Namespace* space = FindNamespace(ns);
    return space == nullptr ? 0 : space->items.size();
  }

  uint64_t Version(std::string_view ns) const override {
    std::shared_lock<std::shared_mutex> lock(mutex_);
    const Namespace* space = FindNamespace(ns);
    return space == nullptr ? 0 : space->version;
  }

 private:
  struct Namespace {
    absl::flat_hash_map<uint64_t, std::shared_ptr<const Item>> items;
    uint64_t version = 0;
  };

  const Namespace* FindNamespace(std::string_view ns) const {
    const auto it = namespaces_.find(ns);
    return it == namespaces_.end() ? nullptr : &it->second;
  }
  // On the commit thread: only it changes the catalog, so what it reads there holds until it writes.
  absl::Status Prepare(const std::string& ns, const std::vector<std::shared_ptr<const Item>>& items, bool allow,
                       std::vector<std::shared_ptr<const Item>>* changed, uint64_t* version);

  const std::shared_ptr<StoreCore> core_;
  std::mutex upsert_mutex_;          // one upsert at a time, from its check to its visibility
  mutable std::shared_mutex mutex_;  // guards namespaces_ and replaced_
  std::map<std::string, Namespace, std::less<>> namespaces_;
  std::shared_ptr<Replaced> replaced_ = std::make_shared<Replaced>();  // by the next upsert
};

absl::Status RocksDbCatalog::Load() {
  auto it = core_->database->Scan(Family::kCatalog, nullptr, true);
  for (it->SeekToFirst(); it->Valid(); it->Next()) {
    const std::string_view key = it->key().ToStringView();
    const size_t ns_bytes = key.empty() ? 0 : static_cast<uint8_t>(key[0]);
    auto item = std::make_shared<Item>();
    if (key.size() != 1 + ns_bytes + 8 || !DecodeItem(it->value().ToStringView(), item.get())) {
      return absl::DataLossError(absl::StrCat("store ", core_->database->directory(), ": a catalog item is malformed; ",
                                              DamageAdvice(core_->database->directory())));
    }
    item->item_id = GetBig(key.data() + 1 + ns_bytes, 8);
    namespaces_[std::string(key.substr(1, ns_bytes))].items[item->item_id] = std::move(item);
  }
  if (!it->status().ok()) return FromRocks(it->status(), core_->database->directory());
  for (auto& [ns, space] : namespaces_) {
    std::string value;
    absl::StatusOr<bool> found = core_->database->Get(Family::kMeta, VersionKey(ns), &value);
    if (!found.ok()) return found.status();
    if (*found) ByteReader(value).ReadVarint(&space.version);
  }
  return absl::OkStatus();
}

absl::Status RocksDbCatalog::Prepare(const std::string& ns, const std::vector<std::shared_ptr<const Item>>& items,
                                     bool allow, std::vector<std::shared_ptr<const Item>>* changed, uint64_t* version) {
  for (std::shared_ptr<const Item> item : items) {
    const std::shared_ptr<const Item> known = Find(ns, item->item_id);
    // An embedding and its space stay where a later upsert leaves them out.
    if (known != nullptr && ((item->embedding.empty() && !known->embedding.empty()) ||
                             (item->embedding_space.empty() && !known->embedding_space.empty()))) {
      auto kept = std::make_shared<Item>(*item);
      if (kept->embedding.empty()) kept->embedding = known->embedding;
      if (kept->embedding_space.empty()) kept->embedding_space = known->embedding_space;
      item = std::move(kept);
    }
    if (known != nullptr && *known == *item) continue;
    const std::string_view field = known == nullptr ? "" : ImmutableDifference(*known, *item);
    if (!field.empty() && !allow) {
      return absl::FailedPreconditionError(absl::StrCat("item ", item->item_id, ": ", std::string(field),
                                                        " is immutable and differs; a new feature version is needed"));
    }
    changed->push_back(item);
  }
  if (changed->empty()) return absl::OkStatus();
  *version = Version(ns) + 1;
  rocksdb::WriteBatch* batch = core_->writer.batch();
  for (const auto& item : *changed) {
    batch->Put(core_->database->family(Family::kCatalog), CellPrefix(ns, item->item_id), EncodeItem(*item));
  }
  std::string value;
  PutVarint(&value, *version);
  batch->Put(core_->database->family(Family::kMeta), VersionKey(ns), value);
  return absl::OkStatus();
}

absl::Status RocksDbCatalog::Upsert(std::string_view ns, std::span<const Item> items, bool allow_immutable_change) {
  if (absl::Status status = CheckNamespace(ns); !status.ok()) return status;
  if (absl::Status status = core_->CheckWritable(); !status.ok()) return status;
  if (items.size() > kItemsPerUpsertMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("items: ", items.size(), ", at most ", kItemsPerUpsertMax, " in one call"));
  }
  std::vector<std::shared_ptr<const Item>> copies;
  absl::flat_hash_map<uint64_t, size_t> seen;
  for (const Item& item : items) {
    if (const std::string why = WhyItemRejected(item); !why.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("item ", item.item_id, ": ", why));
    }
    if (!seen.emplace(item.item_id, copies.size()).second) {
      return absl::InvalidArgumentError(absl::StrCat("item ", item.item_id, ": given twice in one call"));
    }
    copies.push_back(std::make_shared<Item>(item));
  }
  const std::string space_name(ns);
  std::vector<std::shared_ptr<const Item>> changed;
  uint64_t version = 0;
  std::lock_guard<std::mutex> one(upsert_mutex_);
  const absl::Status status = core_->queue.Run(
      [&] { return Prepare(space_name, copies, allow_immutable_change, &changed, &version); }, true, items.size());
  if (!status.ok() || changed.empty()) return status;
  auto next = std::make_shared<Replaced>();
  std::unique_lock<std::shared_mutex> lock(mutex_);
  Namespace& space = namespaces_[space_name];
  for (const auto& item : changed) {
    std::shared_ptr<const Item>& held = space.items[item->item_id];
    if (held != nullptr) replaced_->items.push_back(std::move(held));
    held = item;
  }
  space.version = version;
  replaced_->next = next;
  const std::shared_ptr<Replaced> before = std::exchange(replaced_, std::move(next));  // freed without the lock
  lock.unlock();
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Catalog>> NewCatalog(std::shared_ptr<StoreCore> core) {
  auto catalog = std::make_unique<RocksDbCatalog>(std::move(core));
  if (absl::Status status = catalog->Load(); !status.ok()) return status;
  return std::unique_ptr<Catalog>(std::move(catalog));
}

}  // namespace backstory
