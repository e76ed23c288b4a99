// Searches on a card, with a fake for the card: answers do not depend on company, the CPU stands in as told, nobody
// waits for ever. What runs on a real card is tested in glass_cuda_test.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "models/glass/card_searcher.h"
#include "tests/models/fake_card.h"
#include "tests/models/glass_fixture.h"

namespace backstory::glass {
namespace {

constexpr size_t kUsers = 12;

class CardTest : public ::testing::Test {
 protected:
  CardTest() {
    auto made = Network::Create(config_, RandomTensors(config_, 5));
    EXPECT_TRUE(made.ok()) << made.status();
    network_ = *std::move(made);
    cpu_ = MakeCpuSearcher(network_, nullptr);
    for (uint32_t u = 0; u < kUsers; ++u) {
      History& history = histories_.emplace_back(catalogue_.get());
      for (uint32_t i = 0; i < 5 * u; ++i) history.Append((i * 7 + u * 11) % 60);
    }
    Make({});
  }

  void Make(std::function<void(CardSearcherOptions*)> change) {
    CardSearcherOptions options = FakeCardOptions(control_);
    if (change) change(&options);
    counters_ = std::make_shared<Counters>();
    options.launched = [c = counters_](size_t users) { ++c->launches, c->users += users; };
    options.fell_back = [c = counters_](size_t users) { c->fallbacks += users; };
    card_ = std::make_unique<CardSearcher>(std::make_unique<FakeCard>(network_, control_), network_, nullptr, options);
    for (const History& history : histories_) users_.push_back(card_->Encode(*catalogue_, history));
  }
  UserSearch Of(size_t u, size_t beam = 9) const {
    return {.user = users_[u].get(), .catalogue = catalogue_.get(), .history = &histories_[u], .beam = beam};
  }
  absl::StatusOr<std::vector<Beam>> Search(const UserSearch& request) const {
    std::vector<Beam> beams;
    const absl::Status status = card_->Search({&request, 1}, {&beams, 1});
    if (!status.ok()) return status;
    return beams;
  }
  void ExpectAnswer(size_t u, const std::vector<Beam>& beams, size_t beam = 9) const {
    const auto want = EncodeAndSearch(*cpu_, *catalogue_, histories_[u], beam);
    ASSERT_TRUE(want.ok());
    ASSERT_EQ(beams.size(), want->size());
    for (size_t i = 0; i < beams.size(); ++i) {
      EXPECT_EQ(beams[i].tokens, (*want)[i].tokens) << u << " " << i;
      EXPECT_EQ(beams[i].node, (*want)[i].node);
      EXPECT_EQ(beams[i].score, (*want)[i].score);
    }
  }
  void ExpectAnswers() const {
    for (size_t u = 0; u < kUsers; ++u) {
      const auto beams = Search(Of(u));
      ASSERT_TRUE(beams.ok()) << beams.status();
      ExpectAnswer(u, *beams);
    }
  }

  const Config config_ = SmallConfig();
  std::shared_ptr<const Catalogue> catalogue_ = RandomCatalogue(config_, 60, 3);
  std::shared_ptr<const Network> network_;
  std::unique_ptr<const Searcher> cpu_;
  std::vector<History> histories_;
  std::shared_ptr<FakeCardControl> control_ = std::make_shared<FakeCardControl>();
  struct Counters {
    std::atomic<size_t> launches{0}, users{0}, fallbacks{0};
  };
  std::shared_ptr<Counters> counters_;
  std::unique_ptr<CardSearcher> card_;
  std::vector<std::unique_ptr<const EncodedUser>> users_;
};

TEST_F(CardTest, WhatACardReadsOfAUserIsEnough) {
  ExpectAnswers();
  EXPECT_EQ(counters_->users, kUsers);
  EXPECT_EQ(counters_->fallbacks, 0u);
}

TEST_F(CardTest, OneCallMayHaveManyUsers) {
  std::vector<UserSearch> requests;
  for (size_t u = 0; u < kUsers; ++u) requests.push_back(Of(u, 3 + u % 4));
  std::vector<std::vector<Beam>> beams(kUsers);
  ASSERT_TRUE(card_->Search(requests, beams).ok());
  for (size_t u = 0; u < kUsers; ++u) ExpectAnswer(u, beams[u], 3 + u % 4);
  EXPECT_EQ(control_->launches(), std::vector<size_t>{kUsers});
}

TEST_F(CardTest, ThoseWhoWaitAreSearchedTogether) {
  Make([](auto* options) { options->lanes = 1, options->users_max = 7; });
  control_->Hold(true);
  std::vector<absl::StatusOr<std::vector<Beam>>> answers(kUsers, absl::UnknownError("never answered"));
  std::vector<std::jthread> threads;
  const auto ask = [&](size_t u) { threads.emplace_back([&, u] { answers[u] = Search(Of(u)); }); };
  ask(0);
  control_->WaitForLaunches(1);
  for (size_t u = 1; u < kUsers; ++u) ask(u);
  while (card_->waiting() < kUsers - 1) std::this_thread::yield();
  control_->Hold(false);
  threads.clear();
  for (size_t u = 0; u < kUsers; ++u) {
    ASSERT_TRUE(answers[u].ok()) << answers[u].status();
    ExpectAnswer(u, *answers[u]);
  }
  EXPECT_EQ(control_->launches(), (std::vector<size_t>{1, 7, 4}));
  EXPECT_EQ(counters_->launches, 3u);
}

TEST_F(CardTest, ManyThreadsAndLanesLoseNobody) {
  for (const int lanes : {1, 2, 3}) {
    Make([lanes](auto* options) { options->lanes = lanes, options->users_max = 3; });
    std::atomic<size_t> wrong{0};
    std::vector<std::jthread> threads;
    std::vector<std::vector<Beam>> want;
    for (size_t u = 0; u < kUsers; ++u) want.push_back(*EncodeAndSearch(*cpu_, *catalogue_, histories_[u], 5));
    for (size_t t = 0; t < 8; ++t) {
      threads.emplace_back([&, t] {
        for (size_t i = 0; i < 60; ++i) {
          const size_t u = (i * 5 + t) % kUsers;
          const auto beams = Search(Of(u, 5));
          if (!beams.ok() || beams->size() != want[u].size()) {
            ++wrong;
            continue;
          }
          for (size_t b = 0; b < want[u].size(); ++b) wrong += (*beams)[b].node != want[u][b].node ? 1 : 0;
        }
      });
    }
    threads.clear();
    EXPECT_EQ(wrong, 0u);
    EXPECT_EQ(counters_->users, 8 * 60u);
    EXPECT_LE(counters_->launches, counters_->users) << "no launch is for nobody";
    EXPECT_EQ(card_->waiting(), 0u);
    EXPECT_EQ(Search(Of(1))->size(), 9u) << "a lane is still there";
  }
}

TEST_F(CardTest, TheCpuExplainsAndTakesWhatIsTooWide) {
  Make([](auto* options) { options->beam_max = 8; });
  std::vector<Steering> steering;
  UserSearch explained = Of(8, 6);
  explained.steering = &steering;
  ExpectAnswer(8, *Search(explained), 6);
  EXPECT_EQ(steering.size(), 6u);
  EXPECT_EQ(counters_->fallbacks, 0u);
  ExpectAnswer(3, *Search(Of(3, 9)));
  EXPECT_EQ(counters_->fallbacks, 1u);
  EXPECT_EQ(control_->launches(), std::vector<size_t>{});
}

TEST_F(CardTest, AFailedLaunchIsAnsweredByTheCpuOrRefused) {
  control_->Fail(absl::ResourceExhaustedError("no room"));
  ExpectAnswers();
  EXPECT_EQ(counters_->fallbacks, kUsers);
  control_->Fail(absl::OkStatus());
  ExpectAnswers();
  EXPECT_EQ(counters_->fallbacks, kUsers) << "the next request tries the card again";
  Make([](auto* options) { options->fall_back = false; });
  control_->Fail(absl::ResourceExhaustedError("no room"));
  EXPECT_EQ(Search(Of(2)).status(), absl::ResourceExhaustedError("no room"));
}

TEST_F(CardTest, ALostCardIsGivenUp) {
  control_->Lose(absl::UnavailableError("fell off the bus"));
  EXPECT_TRUE(card_->Outdated(*users_[5]));
  ExpectAnswers();  // users that were encoded before
  EXPECT_EQ(counters_->fallbacks, kUsers);
  const auto again = card_->Encode(*catalogue_, histories_[5]);
  EXPECT_FALSE(card_->Outdated(*again));
  EXPECT_GT(again->bytes(), users_[5]->bytes()) << "the CPU's part counts";
  UserSearch request = Of(5);
  request.user = again.get();
  ExpectAnswer(5, *Search(request));
  EXPECT_EQ(control_->launches(), std::vector<size_t>{});
  Make([](auto* options) { options->fall_back = false; });
  EXPECT_FALSE(card_->Outdated(*users_.back())) << "no encoding helps";
  EXPECT_EQ(Search(Of(2)).status(), absl::UnavailableError("fell off the bus"));
}

TEST_F(CardTest, ATrieStaysAsLongAsItsCatalogue) {
  std::vector<std::weak_ptr<const CudaTrie>> made;
  absl::Status failure;
  Make([&](auto* options) {
    options->make_trie = [&](const Trie& trie) -> absl::StatusOr<std::shared_ptr<const CudaTrie>> {
      if (!failure.ok()) return failure;
      auto one = std::make_shared<FakeTrie>(&trie);
      made.push_back(one);
      return one;
    };
  });
  ASSERT_TRUE(Search(Of(1)).ok() && Search(Of(2)).ok());
  ASSERT_EQ(made.size(), 1u);
  std::shared_ptr<const Catalogue> other = RandomCatalogue(config_, 50, 4);
  UserSearch request = Of(0);  // an empty history is the same in every catalogue
  request.catalogue = other.get();
  ASSERT_TRUE(Search(request).ok());
  ASSERT_EQ(made.size(), 2u);
  other = RandomCatalogue(config_, 40, 5);
  request.catalogue = other.get();
  ASSERT_TRUE(Search(request).ok());
  ASSERT_EQ(made.size(), 3u);
  EXPECT_TRUE(made[1].expired());
  EXPECT_FALSE(made[0].expired());
  other = RandomCatalogue(config_, 30, 6);
  request.catalogue = other.get();
  failure = absl::ResourceExhaustedError("no room for a trie");
  EXPECT_TRUE(Search(request).ok()) << "by the CPU";
  EXPECT_EQ(counters_->fallbacks, 1u);
}

TEST_F(CardTest, AVersionThatTheCardCannotTakeIsTheCpusOrRefused) {
  std::vector<std::string> lines;
  const auto make = [&](absl::StatusOr<std::unique_ptr<const CudaGlass>> card, bool fall_back) {
    CardSearcherOptions options = FakeCardOptions(control_);
    options.fall_back = fall_back;
    return CardOrCpu(std::move(card), network_, nullptr, options,
                     [&](const std::string& line) { lines.push_back(line); });
  };
  const auto on_card = make(std::make_unique<FakeCard>(network_, control_), true);
  ASSERT_TRUE(on_card.ok());
  ExpectAnswer(7, *EncodeAndSearch(**on_card, *catalogue_, histories_[7], 9));
  EXPECT_EQ(control_->launches().size(), 1u);
  EXPECT_TRUE(lines.empty());
  const absl::Status too_wide = absl::FailedPreconditionError("d is 256, the kernels take 128");
  const auto on_cpu = make(too_wide, true);
  ASSERT_TRUE(on_cpu.ok());
  ExpectAnswer(7, *EncodeAndSearch(**on_cpu, *catalogue_, histories_[7], 9));
  EXPECT_EQ(control_->launches().size(), 1u);
  EXPECT_EQ(lines, std::vector<std::string>{"model : the CPU recommends: d is 256, the kernels take 128"});
  EXPECT_EQ(make(too_wide, false).status(), too_wide);
}

}  // namespace
}  // namespace backstory::glass
