// All that `backstory tokenize` needs of a data set, in memory: canonical histories, items, item statistics.
#ifndef BACKSTORY_SERVING_CLI_TOKENIZE_CORPUS_H_
#define BACKSTORY_SERVING_CLI_TOKENIZE_CORPUS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "features/event.h"
#include "features/event_rules.h"
#include "features/io/import_file.h"
#include "features/item.h"
#include "features/item_counts.h"
#include "store/catalog.h"
#include "store/history_store.h"

namespace backstory {

struct UserEvents {
  std::string user;
  std::vector<Event> events;  // canonical, live
};

// Read-only once sealed; then thread-safe.
struct Corpus {
  std::vector<UserEvents> users;  // by id, bytewise
  absl::flat_hash_map<uint64_t, Item> items;
  ItemCountIndex counts;
  uint64_t events = 0;
  CanonicalCounts merged;

  const Item* Find(uint64_t item_id) const {
    const auto found = items.find(item_id);
    return found == items.end() ? nullptr : &found->second;
  }
};

// From files, with the store's rules for repeated events. Later rows of an item win. `bad` gets the rows that could not
// be read, events first; `items_path` may be empty.
absl::StatusOr<Corpus> CorpusFromFiles(const std::string& events_path, const std::string& items_path,
                                       const ImportMappings& mappings, std::vector<BadRow>* bad_events,
                                       std::vector<BadRow>* bad_items);

// Every user of a namespace as `as_of` sees it.
absl::StatusOr<Corpus> CorpusFromStore(HistoryStore* history, const Catalog& catalog, const std::string& ns,
                                       AsOf as_of);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_TOKENIZE_CORPUS_H_
