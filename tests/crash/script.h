// A script of every kind of change, and a model of what it leaves. What operation n does follows from n alone, so the
// oracle of a crash test is two numbers: how many operations were begun, how many were acknowledged.
#ifndef BACKSTORY_TESTS_CRASH_SCRIPT_H_
#define BACKSTORY_TESTS_CRASH_SCRIPT_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "store/rocksdb_history_store.h"

namespace backstory {

// Operations repeat with this period: appends of several sizes, merge, deletions, retention, import, checkpoint,
// compaction, fold.
inline constexpr uint64_t kScriptPeriod = 14;

// A stream of one slot with several users, as ExportSlot makes it; `directory` is scratch.
absl::StatusOr<std::string> MakeSlotStream(const std::string& directory);

// Carries out operation n. Doing it again is harmless: a client that got no ack repeats.
absl::Status DoOperation(uint64_t n, const std::string& directory, const std::string& slot_stream, HistoryStore* store);

class ScriptModel {
 public:
  void Do(uint64_t n);
  // Users with what a reader finds under their name: events in canonical order, without ingest time.
  std::map<std::string, std::vector<Event>> Read() const;
  // An import is one commit per user, every other operation one in all.
  static bool IsImport(uint64_t n);

 private:
  struct User {
    std::vector<Event> events;  // canonical order
    uint64_t first_index = 0;
  };
  void Add(const std::string& user, const std::vector<Event>& events);

  std::map<std::string, User> users_;
  std::map<std::string, std::string> alias_of_;
};

}  // namespace backstory

#endif  // BACKSTORY_TESTS_CRASH_SCRIPT_H_
