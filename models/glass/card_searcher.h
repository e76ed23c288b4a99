// Searches on a card, for requests that come one by one from many threads: those that wait are searched together. The CPU
// does what the card cannot (explanations) or fails at. Plain C++: what runs on the card is behind CudaGlass.
#ifndef BACKSTORY_MODELS_GLASS_CARD_SEARCHER_H_
#define BACKSTORY_MODELS_GLASS_CARD_SEARCHER_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

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
  struct Counters {
    std::atomic<uint64_t> launches{0};
    std::atomic<uint64_t> users{0};      // searched by the card
    std::atomic<uint64_t> fallbacks{0};  // searched by the CPU because the card could not
  };
  Counters* counters = nullptr;     // outlives the searcher
  std::function<void()> searched;  // after every search; may be empty
};

// A catalogue's trie is copied to the card when it is first searched, and leaves when the catalogue does.
std::unique_ptr<const Searcher> MakeCardSearcher(std::unique_ptr<const CudaGlass> card,
                                                 std::shared_ptr<const Network> network, ThreadPool* pool,
                                                 CardSearcherOptions options);

}  // namespace backstory::glass

#endif  // BACKSTORY_MODELS_GLASS_CARD_SEARCHER_H_
