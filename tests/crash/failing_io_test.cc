// Write call 1, 2, 3 ... fails, once and for ever, while a store is opened, appended to and compacted (goal R12,
// small): every call returns a status, nothing acknowledged is lost, and the store is sound afterwards.
#include <filesystem>

#include "gmock/gmock.h"
#include "store/maintenance.h"
#include "tests/crash/failing_env.h"
#include "tests/store/store_test_util.h"

namespace backstory {
namespace {

constexpr int kBatches = 12;

std::vector<Event> Batch(uint64_t n) {
  std::vector<Event> events;
  for (uint64_t i = 0; i < 30; ++i) events.push_back(Exposure(n * 30 + i + 1, static_cast<int64_t>(n * 30 + i)));
  return events;
}

// Returns which batches were acknowledged.
std::vector<uint64_t> Work(const std::string& directory, FailingEnv* env) {
  StoreOptions options;
  options.directory = directory;
  options.write_buffer_bytes = size_t{64} << 10;
  std::vector<uint64_t> acked;
  auto store = OpenStoreWithEnv(options, env->env());
  if (!store.ok()) {
    EXPECT_NE(store.status().code(), absl::StatusCode::kUnknown) << store.status();
    return acked;
  }
  for (uint64_t n = 0; n < kBatches; ++n) {
    const auto result = store->history->Append({"shop", "ann"}, Batch(n), kNow, Durability::kSynced);
    if (result.ok()) acked.push_back(n);
    EXPECT_NE(result.status().code(), absl::StatusCode::kUnknown) << result.status();
    if (n == kBatches / 2) (void)store->history->Compact();
  }
  return acked;
}

void Check(const std::string& directory, const std::vector<uint64_t>& acked, const std::string& when) {
  StoreOptions options;
  options.directory = directory;
  auto store = OpenHistoryStore(options);
  ASSERT_TRUE(store.ok()) << when << ": " << store.status();
  std::vector<uint64_t> ids;
  for (const Event& e : ReadEvents(**store, {"shop", "ann"})) ids.push_back(e.event_id);
  for (const uint64_t n : acked) {
    for (const Event& e : Batch(n)) ASSERT_THAT(ids, testing::Contains(e.event_id)) << when;
  }
  store->reset();
  const auto report = VerifyStore(directory);
  ASSERT_TRUE(report.ok()) << when << ": " << report.status();
  ASSERT_THAT(report->problems, testing::IsEmpty()) << when;
}

TEST(FailingIo, EveryNthWriteCall) {
  TempDir dir;
  int64_t calls = 0;
  {
    FailingEnv env;
    ASSERT_EQ(Work(dir / "clean", &env).size(), static_cast<size_t>(kBatches));
    calls = env.calls();
  }
  ASSERT_GT(calls, 30);
  // About twenty of the calls, from the first to beyond the last, each once and for ever.
  const int64_t step = std::max<int64_t>(1, calls / 10);
  for (const bool forever : {false, true}) {
    for (int64_t n = 1; n <= calls + step; n += step) {
      const std::string store = dir / "store", when = Numbered("call ", n) + (forever ? " and after" : " once");
      std::filesystem::remove_all(store);
      FailingEnv env;
      env.FailAt(n, forever);
      const std::vector<uint64_t> acked = Work(store, &env);
      Check(store, acked, when);
      ASSERT_FALSE(HasFailure());
    }
  }
}

}  // namespace
}  // namespace backstory
