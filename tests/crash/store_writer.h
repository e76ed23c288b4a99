// What the writer process of the crash tests writes; the tests know it too. The process is its own binary because a
// process that has threads cannot fork a working copy of itself.
//
//   store_writer fill DIR closed|killed    fixed content, then a clean close or SIGKILL on itself
//   store_writer append DIR ORACLE SEED    appends until killed; see kill_test.cc
//   store_writer script DIR ORACLE STREAM  two rounds of script.h, from where the oracle says; see kill_point_test.cc
#ifndef BACKSTORY_TESTS_CRASH_STORE_WRITER_H_
#define BACKSTORY_TESTS_CRASH_STORE_WRITER_H_

#include <string>
#include <utility>
#include <vector>

#include "features/event.h"
#include "store/history_store.h"

namespace backstory {

inline constexpr int kFillUsers = 40;
inline constexpr int kFillParts = 4;  // two end in SSTs, two in the log
inline constexpr uint64_t kFillItems = 49;
inline constexpr int64_t kFillNow = int64_t{1'700'000'000} * 1'000'000;

inline UserKey FillUser(int i) {
  std::string user = "user";
  user += std::to_string(i);
  return {"shop", std::move(user)};
}

inline std::vector<Event> FillBatch(int user, int part) {
  std::vector<Event> events;
  for (uint64_t i = 0; i < 50; ++i) {
    const uint64_t id = static_cast<uint64_t>(part) * 50 + i + 1;
    Event e;
    e.kind = EventKind::kAction;
    e.action = ActionType::kRating;
    e.value = 3.5f;
    e.event_id = id * 0x9E3779B97F4A7C15u;
    e.time_us = static_cast<int64_t>(id) * 1'000'000;
    e.item_id = static_cast<uint64_t>(user);
    events.push_back(e);
  }
  return events;
}

// The events of batch n of user u in `append`: content follows from (user, n) alone, so the oracle holds numbers only.
inline std::vector<Event> AppendBatch(int user, uint64_t n) {
  std::vector<Event> events;
  const uint64_t rows = (n * 7 + static_cast<uint64_t>(user)) % 40 + 1;
  for (uint64_t i = 0; i < rows; ++i) {
    Event e;
    e.event_id = n << 8 | i;
    e.item_id = (n * 31 + i) % 97;
    e.time_us = static_cast<int64_t>((n * 1000 + (i * 613) % 1500) * 1'000);
    e.position = static_cast<uint32_t>(i);
    events.push_back(e);
  }
  return events;
}
inline constexpr int kAppendThreads = 4;

// One line of the oracle, written outside the store: "P user n" before a batch is sent, "C user n" after its ack.
}  // namespace backstory

#endif  // BACKSTORY_TESTS_CRASH_STORE_WRITER_H_
