// A card without a card: searches what a CudaUser says on the CPU, or fails as told.
#ifndef BACKSTORY_TESTS_MODELS_FAKE_CARD_H_
#define BACKSTORY_TESTS_MODELS_FAKE_CARD_H_

#include <gtest/gtest.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "models/glass/card_searcher.h"

namespace backstory::glass {

struct FakeTrie final : CudaTrie {
  explicit FakeTrie(const Trie* t) : trie(t) {}
  size_t bytes() const override { return 1; }
  const Trie* const trie;
};

// What a test and the fake that it handed over share. Thread-safe.
class FakeCardControl {
 public:
  void Fail(absl::Status status) {
    std::lock_guard lock(mutex_);
    failure_ = std::move(status);
  }
  void Lose(absl::Status status) {
    std::lock_guard lock(mutex_);
    health_ = std::move(status);
  }
  void Hold(bool hold) {
    std::lock_guard lock(mutex_);
    hold_ = hold;
    changed_.notify_all();
  }
  absl::Status health() const {
    std::lock_guard lock(mutex_);
    return health_;
  }
  // Users of each launch so far.
  std::vector<size_t> launches() const {
    std::lock_guard lock(mutex_);
    return launches_;
  }
  // Of a launch: its status, after whoever holds launches lets go.
  absl::Status Launched(size_t users) {
    EXPECT_GT(users, 0u);
    std::unique_lock lock(mutex_);
    launches_.push_back(users);
    changed_.notify_all();
    changed_.wait(lock, [this] { return !hold_; });
    return failure_;
  }
  void WaitForLaunches(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return launches_.size() >= count; });
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  absl::Status failure_, health_;  // guarded by mutex_
  bool hold_ = false;              // guarded by mutex_
  std::vector<size_t> launches_;   // guarded by mutex_
};

class FakeCard final : public CudaGlass {
 public:
  FakeCard(std::shared_ptr<const Network> network, std::shared_ptr<FakeCardControl> control)
      : network_(std::move(network)), control_(std::move(control)) {}

  absl::Status Search(std::span<const CudaGlassRequest> requests, std::span<CudaGlassReply> replies) const override {
    if (absl::Status s = control_->Launched(requests.size()); !s.ok()) return s;
    for (size_t i = 0; i < requests.size(); ++i) {
      const CudaUser& user = *requests[i].user;
      SearchOptions options;
      options.beam = requests[i].beam;
      options.mode = requests[i].mode;
      options.trie = static_cast<const FakeTrie*>(requests[i].trie)->trie;
      const Memory memory = network_->Encode(user.short_tokens, user.tier.data(), nullptr);
      replies[i].beams = glass::Search(*network_, memory, BucketsOf(user), options);
    }
    return absl::OkStatus();
  }
  size_t bytes() const override { return 0; }

 private:
  BucketTokens BucketsOf(const CudaUser& user) const {
    return [this, &user](uint16_t code) {
      std::vector<uint32_t> tokens;
      for (uint32_t i = user.begin[code]; i < user.begin[code + 1]; ++i) {
        uint32_t place = user.members[i] >> CudaUser::kCountBits;
        const uint32_t count = user.members[i] & ((1u << CudaUser::kCountBits) - 1);
        size_t level = 0;
        for (; place >= static_cast<uint32_t>(network_->config().levels[level]); ++level) {
          place -= static_cast<uint32_t>(network_->config().levels[level]);
        }
        tokens.insert(tokens.end(), count, network_->config().offset(level) + place);
      }
      return tokens;
    };
  }
  const std::shared_ptr<const Network> network_;
  const std::shared_ptr<FakeCardControl> control_;
};

inline CardSearcherOptions FakeCardOptions(const std::shared_ptr<FakeCardControl>& control) {
  CardSearcherOptions options;
  options.health = [control] { return control->health(); };
  options.make_trie = [](const Trie& trie) -> absl::StatusOr<std::shared_ptr<const CudaTrie>> {
    return std::make_shared<FakeTrie>(&trie);
  };
  return options;
}

// For LoadOptions::serve_with.
inline SearcherFactory ServeWithFakeCard(const std::shared_ptr<FakeCardControl>& control) {
  return [control](const Config&, const TensorMap&, std::shared_ptr<const Network> network,
                   ThreadPool* pool) -> absl::StatusOr<std::unique_ptr<const Searcher>> {
    return std::make_unique<CardSearcher>(std::make_unique<FakeCard>(network, control), network, pool,
                                          FakeCardOptions(control));
  };
}

}  // namespace backstory::glass

#endif  // BACKSTORY_TESTS_MODELS_FAKE_CARD_H_
