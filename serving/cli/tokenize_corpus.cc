#include "serving/cli/tokenize_corpus.h"

#include <algorithm>
#include <utility>

namespace backstory {
namespace {

void Seal(Corpus* corpus) {
  std::sort(corpus->users.begin(), corpus->users.end(),
            [](const UserEvents& a, const UserEvents& b) { return a.user < b.user; });
  for (const UserEvents& user : corpus->users) {
    corpus->events += user.events.size();
    for (const Event& event : user.events) corpus->counts.Add(event);
  }
  corpus->counts.Seal();
}

}  // namespace

absl::StatusOr<Corpus> CorpusFromFiles(const std::string& events_path, const std::string& items_path,
                                       const ImportMappings& mappings, std::vector<BadRow>* bad_events,
                                       std::vector<BadRow>* bad_items) {
  Corpus corpus;
  absl::StatusOr<std::vector<ImportedEvent>> rows = ReadEventFile(events_path, mappings.events, bad_events);
  if (!rows.ok()) return rows.status();
  absl::flat_hash_map<std::string, size_t> index;
  for (ImportedEvent& row : *rows) {
    const auto [user, added] = index.try_emplace(row.user, corpus.users.size());
    if (added) corpus.users.push_back({.user = std::move(row.user), .events = {}});
    corpus.users[user->second].events.push_back(std::move(row.event));
  }
  for (UserEvents& user : corpus.users) {
    const CanonicalCounts merged = CanonicalHistory(&user.events);
    corpus.merged.duplicates += merged.duplicates;
    corpus.merged.conflicts += merged.conflicts;
    corpus.merged.tombstones += merged.tombstones;
  }
  if (!items_path.empty()) {
    absl::StatusOr<std::vector<Item>> items = ReadItemFile(items_path, mappings.items, bad_items);
    if (!items.ok()) return items.status();
    for (Item& item : *items) corpus.items.insert_or_assign(item.item_id, std::move(item));
  }
  Seal(&corpus);
  return corpus;
}

absl::StatusOr<Corpus> CorpusFromStore(HistoryStore* history, const Catalog& catalog, const std::string& ns,
                                       AsOf as_of) {
  Corpus corpus;
  absl::Status failed;
  const auto read = [&](const UserKey& key, const UserHead&) {
    absl::StatusOr<HistoryStore::Snapshot> snapshot = history->Read(key, {.as_of = as_of});
    if (!snapshot.ok()) {
      failed = snapshot.status();
      return false;
    }
    corpus.users.push_back({.user = key.user, .events = std::move(snapshot->events)});
    return true;
  };
  if (auto status = history->ForEachUser(ns, read); !status.ok()) return status;
  if (!failed.ok()) return failed;
  catalog.ForEach(ns, [&corpus](const Item& item) {
    corpus.items.insert_or_assign(item.item_id, item);
    return true;
  });
  Seal(&corpus);
  return corpus;
}

}  // namespace backstory
