// Who encodes users and decodes beams for them: the CPU (here), or a card (card_searcher.h). On the CPU no
// bit of an answer depends on who shares the call; on a card, rounding does (cuda/model.h).
#ifndef BACKSTORY_MODELS_GLASS_SEARCHER_H_
#define BACKSTORY_MODELS_GLASS_SEARCHER_H_

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/thread_pool.h"
#include "models/glass/beam_search.h"
#include "models/glass/catalogue.h"
#include "models/glass/history.h"
#include "models/glass/network.h"
#include "models/tensor_map.h"

namespace backstory::glass {

// What a searcher keeps of a history between searches. Immutable, and of the searcher that made it.
class EncodedUser {
 public:
  virtual ~EncodedUser() = default;
  virtual size_t bytes() const = 0;
};

struct UserSearch {
  const EncodedUser* user = nullptr;
  const Catalogue* catalogue = nullptr;  // this and `history`: what `user` was encoded from, unchanged since
  const History* history = nullptr;
  size_t beam = 20;                           // 1..1024
  std::vector<Steering>* steering = nullptr;  // one per beam of the reply, if wanted
};

// Thread-safe.
class Searcher {
 public:
  virtual ~Searcher() = default;
  virtual std::unique_ptr<const EncodedUser> Encode(const Catalogue& catalogue, const History& history) const = 0;
  // Whether searches would be faster if the user were encoded again, because the machine has changed since.
  virtual bool Outdated(const EncodedUser&) const { return false; }
  // beams [requests.size()], as glass::Search gives them over the catalogue's trie. UNAVAILABLE or RESOURCE_EXHAUSTED:
  // a card failed and nobody is to stand in for it.
  virtual absl::Status Search(std::span<const UserSearch> requests, std::span<std::vector<Beam>> beams) const = 0;
};

// `pool` may be null; it and the network must outlive the searcher. One search at a time is spread over the threads of
// the pool; searches that run side by side keep to their own.
std::unique_ptr<const Searcher> MakeCpuSearcher(std::shared_ptr<const Network> network, ThreadPool* pool);

// Makes the searcher of a version that is being loaded, for another machine than the CPU.
using SearcherFactory = std::function<absl::StatusOr<std::unique_ptr<const Searcher>>(
    const Config& config, const TensorMap& tensors, std::shared_ptr<const Network> network, ThreadPool* pool)>;

// One user's whole search: encodes, then decodes.
absl::StatusOr<std::vector<Beam>> EncodeAndSearch(const Searcher& searcher, const Catalogue& catalogue,
                                                  const History& history, size_t beam);

}  // namespace backstory::glass

#endif  // BACKSTORY_MODELS_GLASS_SEARCHER_H_
