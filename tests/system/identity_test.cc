// The identities of GRAB (grab.md 4.3) as a caller sees them: through gRPC, RocksDB and the state cache of the real
// server, with an untrained model. Every comparison is bit for bit.
#include <gtest/gtest.h>

#include <csignal>
#include <random>

#include "tests/system/client.h"
#include "tests/system/server_process.h"

namespace backstory {
namespace {

constexpr int64_t kStart = 1'600'000'000'000'000, kMinute = 60'000'000;
constexpr int64_t kLongAfter = kStart + 400'000 * kMinute;  // every label window is over

class Identity : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    scratch_ = new ScratchDir;
    server_ = new ServerProcess({.store = scratch_->path() / "store",
                                 .models = {},
                                 .arguments = {"--create-store"},
                                 .environment = {}});
    ASSERT_TRUE(server_->Start()) << server_->log();
  }
  static void TearDownTestSuite() {
    delete server_;
    delete scratch_;
  }

  void SetUp() override { client_ = std::make_unique<SystemClient>(server_->Connect()); }

  void Append(const std::string& user, const std::vector<v1::Event>& events) {
    const auto [status, response] = client_->Append(user, events);
    ASSERT_TRUE(status.ok()) << status.error_message();
    ASSERT_EQ(response.accepted(), events.size()) << response.DebugString();
  }

  v1::RankResponse Rank(const std::string& user, int64_t now_us, const std::vector<uint64_t>& items,
                        uint64_t request_id = 0) {
    const auto [status, response] = client_->Rank(user, now_us, items, request_id);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }

  std::vector<float> Logits(const std::string& user, int64_t now_us, const std::vector<uint64_t>& items,
                            uint64_t request_id = 0) {
    const v1::RankResponse response = Rank(user, now_us, items, request_id);
    return {response.scores(0).raw_logit().begin(), response.scores(0).raw_logit().end()};
  }

  // `n` exposures, a minute apart, every third one clicked two minutes later. Ids from `first`.
  static std::vector<v1::Event> Past(int n, uint64_t first, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<v1::Event> events;
    for (int i = 0; i < n; ++i) {
      const uint64_t id = first + 2 * static_cast<uint64_t>(i), item = 1 + random() % 50;
      events.push_back(Exposure(id, kStart + i * kMinute, item));
      if (i % 3 == 0) events.push_back(Click(id + 1, kStart + i * kMinute + kMinute / 2, item, id));
    }
    return events;
  }

  static ScratchDir* scratch_;
  static ServerProcess* server_;
  std::unique_ptr<SystemClient> client_;
};
ScratchDir* Identity::scratch_ = nullptr;
ServerProcess* Identity::server_ = nullptr;

TEST_F(Identity, AppendOneEventReusesAllButTheTail) {
  Append("reuse", Past(300, 1, 1));
  const v1::RankResponse cold = Rank("reuse", kLongAfter, {1, 2, 3});
  const uint64_t rows = cold.cache().rows_computed();
  EXPECT_GE(rows, 300u) << "the first call builds every row of every channel";
  const v1::RankResponse hit = Rank("reuse", kLongAfter, {1, 2, 3});
  EXPECT_EQ(hit.cache().source(), "hit");
  EXPECT_EQ(hit.cache().rows_computed(), 0u);
  EXPECT_EQ(hit.cache().rows_reused(), rows);

  Append("reuse", {Exposure(9'001, kStart + 301 * kMinute, 7)});
  // The append may have refreshed the state already: what matters is that no old row was computed again.
  const v1::RankResponse after = Rank("reuse", kLongAfter, {1, 2, 3});
  EXPECT_GE(after.cache().rows_reused(), rows);
  EXPECT_LE(after.cache().rows_computed(), 2u);
  EXPECT_EQ(after.seq(), hit.seq() + 1);
}

TEST_F(Identity, ARebuiltStateScoresTheSameBitsAsAGrownOne) {
  const std::vector<v1::Event> past = Past(200, 1, 2);
  for (size_t begin = 0; begin < past.size(); begin += 17) {  // grown in uneven steps, ranked between them
    Append("grown", {past.begin() + static_cast<long>(begin),
                     past.begin() + static_cast<long>(std::min(past.size(), begin + 17))});
    Rank("grown", kLongAfter, {1});
  }
  const std::vector<float> grown = Logits("grown", kLongAfter, {1, 2, 3, 4, 5});
  server_->Signal(SIGTERM);
  ASSERT_EQ(server_->Wait().code, 0) << server_->log();
  ASSERT_TRUE(server_->Start()) << server_->log();
  client_ = std::make_unique<SystemClient>(server_->Connect());
  EXPECT_EQ(Logits("grown", kLongAfter, {1, 2, 3, 4, 5}), grown);
  Append("at-once", past);
  EXPECT_EQ(Logits("at-once", kLongAfter, {1, 2, 3, 4, 5}).size(), grown.size());
}

TEST_F(Identity, ALateEventGivesTheBitsOfARebuild) {
  std::vector<v1::Event> past = Past(150, 1, 3);
  const v1::Event late = past[40];
  past.erase(past.begin() + 40);
  Append("late", past);
  Rank("late", kLongAfter, {1});
  Append("late", {late});
  const std::vector<float> patched = Logits("late", kLongAfter, {1, 2, 3});
  server_->Kill();
  ASSERT_TRUE(server_->Start()) << server_->log();
  client_ = std::make_unique<SystemClient>(server_->Connect());
  EXPECT_EQ(Logits("late", kLongAfter, {1, 2, 3}), patched);
}

TEST_F(Identity, TheFutureNeverChangesAScore) {
  Append("leak", Past(60, 1, 4));
  const int64_t now = kStart + 61 * kMinute;
  const std::vector<float> before = Logits("leak", now, {1, 2, 3}, 77);
  v1::Event shown = Exposure(8'001, now, 2);  // at now: invisible
  shown.set_request_id(77);
  v1::Event member = Exposure(8'003, now - kMinute, 3);  // earlier, but of the same request: a tie
  member.set_request_id(77);
  Append("leak", {shown, Click(8'002, now + kMinute, 2, 8'001), member, Exposure(8'004, now + 5 * kMinute, 9)});
  EXPECT_EQ(Logits("leak", now, {1, 2, 3}, 77), before);
  EXPECT_NE(Logits("leak", now + 500'000 * kMinute, {1, 2, 3}), before) << "later, they do count";
}

TEST_F(Identity, CandidatesDoNotSeeEachOther) {
  Append("isolation", Past(90, 1, 5));
  std::vector<uint64_t> items;
  for (uint64_t i = 1; i <= 40; ++i) items.push_back(i);
  const std::vector<float> together = Logits("isolation", kLongAfter, items);
  for (size_t i = 0; i < items.size(); i += 7) {
    EXPECT_EQ(Logits("isolation", kLongAfter, {items[i]})[0], together[i]) << "item " << items[i];
  }
  std::vector<uint64_t> reversed(items.rbegin(), items.rend());
  std::vector<float> permuted = Logits("isolation", kLongAfter, reversed);
  std::reverse(permuted.begin(), permuted.end());
  EXPECT_EQ(permuted, together);
}

TEST_F(Identity, UsersDoNotSeeEachOther) {
  Append("alice", Past(50, 1, 6));
  const std::vector<float> before = Logits("alice", kLongAfter, {101, 102});
  Append("bob", Past(80, 1, 7));
  Logits("bob", kLongAfter, {101, 102});
  // Items 101 and 102 are in nobody's past, so that their statistics stay as they were.
  EXPECT_EQ(Logits("alice", kLongAfter, {101, 102}), before);
}

TEST_F(Identity, AnUnknownUserRanksOnNothingAndSaysSo) {
  const v1::RankResponse response = Rank("nobody", kLongAfter, {1, 2});
  EXPECT_TRUE(response.unknown_user());
  EXPECT_EQ(response.scores(0).raw_logit_size(), 2);
  EXPECT_EQ(response.unknown_items_size(), 2) << "no item was ever described to the catalog";
}

}  // namespace
}  // namespace backstory
