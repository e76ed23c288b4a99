// What the store's tests share.
#ifndef BACKSTORY_TESTS_STORE_STORE_TEST_UTIL_H_
#define BACKSTORY_TESTS_STORE_STORE_TEST_UTIL_H_

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "store/history_store.h"
#include "store/rocksdb_history_store.h"

namespace backstory {

inline constexpr int64_t kSecond = 1'000'000;
inline constexpr int64_t kHour = 3600 * kSecond;
inline constexpr int64_t kNow = int64_t{1'700'000'000} * kSecond;

// A directory of its own, removed at the end.
class TempDir {
 public:
  TempDir() : TempDir(TemporaryBase()) {}
  // In memory where the system has such a place with room: for tests whose outcome cannot depend on the disk, such as
  // those that kill a process (what it wrote stays with the system, on any file system), and which sync very often.
  static TempDir InMemory() {
    std::error_code error;
    const bool room = std::filesystem::space("/dev/shm", error).available > (uint64_t{1} << 30) && !error;
    return TempDir(room && access("/dev/shm", W_OK) == 0 ? "/dev/shm" : TemporaryBase());
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  explicit TempDir(const std::string& base) {
    std::string path = base + "/backstory_store_XXXXXX";
    path_ = mkdtemp(path.data());
  }
  static std::string TemporaryBase() {
    const char* base = std::getenv("TMPDIR");
    return base == nullptr ? "/tmp" : base;
  }

  std::string path_;
};

// Random by default; BACKSTORY_SEED repeats a run. Prints the seed.
inline uint64_t TestSeed() {
  const char* given = std::getenv("BACKSTORY_SEED");
  const uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  std::printf("seed %llu (repeat with BACKSTORY_SEED=%llu)\n", static_cast<unsigned long long>(seed),
              static_cast<unsigned long long>(seed));
  return seed;
}

inline Event Exposure(uint64_t id, int64_t time_us, uint64_t item = 7) {
  Event e;
  e.event_id = id;
  e.time_us = time_us;
  e.item_id = item;
  return e;
}

inline Event Rating(uint64_t id, int64_t time_us, uint64_t item, float value) {
  Event e = Exposure(id, time_us, item);
  e.kind = EventKind::kAction;
  e.action = ActionType::kRating;
  e.value = value;
  return e;
}

inline std::string Numbered(const char* name, int64_t n) {
  std::string text = name;
  text += std::to_string(n);
  return text;
}

// Any storable event; ids from a small range so that they repeat.
inline Event RandomEvent(std::mt19937_64* random, uint64_t ids, int64_t from_us, int64_t span_us) {
  auto& r = *random;
  Event e = Exposure(r() % ids + 1, from_us + static_cast<int64_t>(r() % static_cast<uint64_t>(span_us)), r() % 50);
  e.revision = static_cast<uint32_t>(r() % 3);
  e.request_id = r() % 2 == 0 ? 0 : r() % 40;
  e.position = static_cast<uint32_t>(r() % 10);
  if (r() % 2 == 0) e.scene = r() % 2 == 0 ? "home" : "a scene with a longer name";
  if (r() % 2 == 0) {
    e.kind = EventKind::kAction;
    e.action = static_cast<ActionType>(r() % 9);
    e.value = static_cast<float>(r() % 11) / 2;
    if (r() % 2 == 0) e.exposure_id = r() % ids + 1;
  }
  for (uint64_t i = r() % 3; i > 0; --i)
    e.context.push_back({Numbered("field", static_cast<int64_t>(r() % 4)), std::to_string(r() % 9)});
  for (uint64_t i = r() % 8 == 0 ? 3 : 0; i > 0; --i) e.embedding_ids.push_back(r());
  return e;
}

// The canonical projection: what must not depend on when and in which order events arrived.
inline std::vector<Event> Canonical(std::vector<Event> events) {
  for (Event& e : events) e.ingest_time_us = 0;
  return events;
}

inline std::vector<Event> ReadEvents(HistoryStore& store, const UserKey& user, const HistoryRange& range = {}) {
  absl::StatusOr<HistoryStore::Snapshot> read = store.Read(user, range);
  EXPECT_TRUE(read.ok()) << read.status();
  return read.ok() ? std::move(read->events) : std::vector<Event>();
}

inline AppendResult MustAppend(HistoryStore& store, const UserKey& user, const std::vector<Event>& events,
                               int64_t now_us = kNow, Durability durability = Durability::kBuffered) {
  absl::StatusOr<AppendResult> result = store.Append(user, events, now_us, durability);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? *std::move(result) : AppendResult();
}

inline std::unique_ptr<HistoryStore> MustOpen(StoreOptions options) {
  absl::StatusOr<std::unique_ptr<HistoryStore>> store = OpenHistoryStore(options);
  EXPECT_TRUE(store.ok()) << store.status();
  return store.ok() ? *std::move(store) : nullptr;
}

inline std::unique_ptr<HistoryStore> MustOpen(const std::string& directory) {
  StoreOptions options;
  options.directory = directory;
  return MustOpen(options);
}

}  // namespace backstory

#endif  // BACKSTORY_TESTS_STORE_STORE_TEST_UTIL_H_
