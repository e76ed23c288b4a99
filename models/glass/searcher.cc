#include "models/glass/searcher.h"

#include <atomic>
#include <utility>

namespace backstory::glass {
namespace {

struct CpuUser final : EncodedUser {
  explicit CpuUser(Memory m) : memory(std::move(m)) {}
  size_t bytes() const override { return memory.bytes(); }
  const Memory memory;
};

class CpuSearcher final : public Searcher {
 public:
  CpuSearcher(std::shared_ptr<const Network> network, ThreadPool* pool) : network_(std::move(network)), pool_(pool) {}

  std::unique_ptr<const EncodedUser> Encode(const Catalogue&, const History& history) const override {
    const Busy busy(this);
    return std::make_unique<CpuUser>(glass::Encode(*network_, history, busy.pool()));
  }

  absl::Status Search(std::span<const UserSearch> requests, std::span<std::vector<Beam>> beams) const override {
    const Busy busy(this);
    // A thread for each user: nobody waits for anybody's parts.
    ThreadPool* const within = requests.size() > 1 ? nullptr : busy.pool();
    ParallelFor(requests.size() > 1 ? busy.pool() : nullptr, requests.size(), [&](size_t i) {
      const UserSearch& request = requests[i];
      SearchOptions options;
      options.beam = request.beam;
      options.trie = &request.catalogue->trie();
      options.pool = within;
      options.steering = request.steering;
      beams[i] = glass::Search(*network_, static_cast<const CpuUser*>(request.user)->memory,
                               BucketsOf(*request.catalogue, *request.history), options);
    });
    return absl::OkStatus();
  }

 private:
  // Threads that are busy with users of their own are no help: waking them would cost both.
  class Busy {
   public:
    explicit Busy(const CpuSearcher* searcher) : searcher_(searcher), alone_(searcher->running_.fetch_add(1) == 0) {}
    ~Busy() { searcher_->running_.fetch_sub(1); }
    Busy(const Busy&) = delete;
    Busy& operator=(const Busy&) = delete;
    ThreadPool* pool() const { return alone_ ? searcher_->pool_ : nullptr; }

   private:
    const CpuSearcher* const searcher_;
    const bool alone_;
  };

  const std::shared_ptr<const Network> network_;
  ThreadPool* const pool_;
  mutable std::atomic<int> running_{0};
};

}  // namespace

std::unique_ptr<const Searcher> MakeCpuSearcher(std::shared_ptr<const Network> network, ThreadPool* pool) {
  return std::make_unique<CpuSearcher>(std::move(network), pool);
}

absl::StatusOr<std::vector<Beam>> EncodeAndSearch(const Searcher& searcher, const Catalogue& catalogue,
                                                  const History& history, size_t beam) {
  const auto user = searcher.Encode(catalogue, history);
  const UserSearch request{.user = user.get(), .catalogue = &catalogue, .history = &history, .beam = beam};
  std::vector<Beam> beams;
  if (absl::Status s = searcher.Search({&request, 1}, {&beams, 1}); !s.ok()) return s;
  return beams;
}

}  // namespace backstory::glass
