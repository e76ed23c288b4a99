// Searches on a card, for requests that come one by one from many threads: those that wait are searched together. The
// CPU does what the card cannot (explanations) or fails at. Plain C++: what runs on the card is behind CudaGlass.
#ifndef BACKSTORY_MODELS_GLASS_CARD_SEARCHER_H_
#define BACKSTORY_MODELS_GLASS_CARD_SEARCHER_H_

#include <cstddef>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "models/glass/cuda/model.h"
#include "models/glass/searcher.h"

namespace backstory::glass {

struct CardSearcherOptions {
  size_t users_max = 256;  // searched together
  size_t beam_max = 512;   // of CudaGlassOptions; wider searches are the CPU's
  int lanes = 2;           // launches in flight
  bool fall_back = true;   // to the CPU where the card fails; else UNAVAILABLE or RESOURCE_EXHAUSTED
  // OK, or why the card was given up; called before every search.
  std::function<absl::Status()> health;
  std::function<absl::StatusOr<std::shared_ptr<const CudaTrie>>(const Trie&)> make_trie;
  // Counts, each may be empty: users of a launch; users that the CPU searched because the card could not.
  std::function<void(size_t users)> launched, fell_back;
};

// Tries of the catalogues that are searched: copied to the card when first needed, gone with the catalogue.
// Thread-safe.
class CardTries {
 public:
  using Make = std::function<absl::StatusOr<std::shared_ptr<const CudaTrie>>(const Trie&)>;
  explicit CardTries(Make make) : make_(std::move(make)) {}
  absl::StatusOr<std::shared_ptr<const CudaTrie>> Of(const Catalogue& catalogue);

 private:
  struct Held {
    std::weak_ptr<const Catalogue> catalogue;
    std::shared_ptr<const CudaTrie> trie;
  };
  const Make make_;
  std::mutex mutex_;
  std::map<const Catalogue*, Held> tries_;  // guarded by mutex_
};

class CardSearcher final : public Searcher {
 public:
  // `pool` may be null; it outlives the searcher. The network is the CPU's, of the same version.
  CardSearcher(std::unique_ptr<const CudaGlass> card, std::shared_ptr<const Network> network, ThreadPool* pool,
               CardSearcherOptions options);

  // What the card reads of the history. Once the card is lost, the CPU's as well.
  std::unique_ptr<const EncodedUser> Encode(const Catalogue& catalogue, const History& history) const override;
  bool Outdated(const EncodedUser& user) const override;
  absl::Status Search(std::span<const UserSearch> requests, std::span<std::vector<Beam>> beams) const override;

  size_t waiting() const;  // calls that wait for a lane

 private:
  struct Caller;
  absl::Status SearchOnCard(std::span<const UserSearch> requests, std::span<const size_t> which,
                            std::span<std::vector<Beam>> beams) const;
  void RunTogether(Caller* own) const;
  void Launch(std::span<Caller* const> callers) const;
  absl::Status SearchOnCpu(const UserSearch& request, std::vector<Beam>* beams) const;

  const std::unique_ptr<const CudaGlass> card_;
  const std::unique_ptr<const Searcher> cpu_;
  const CardSearcherOptions options_;
  mutable CardTries tries_;
  mutable std::mutex mutex_;
  mutable std::deque<Caller*> waiting_;  // guarded by mutex_
  mutable int leaders_ = 0;              // guarded by mutex_: callers that launch, at most options_.lanes
};

// What serves a version whose creation on a card gave `card`: the card; the CPU with a line for operators if the card
// could not take it and the CPU may stand in; else that status.
absl::StatusOr<std::unique_ptr<const Searcher>> CardOrCpu(absl::StatusOr<std::unique_ptr<const CudaGlass>> card,
                                                          std::shared_ptr<const Network> network, ThreadPool* pool,
                                                          CardSearcherOptions options,
                                                          const std::function<void(const std::string&)>& log);

}  // namespace backstory::glass

#endif  // BACKSTORY_MODELS_GLASS_CARD_SEARCHER_H_
