#include "models/grab/cuda/prefills.h"

#include <utility>

namespace backstory::grab {

absl::StatusOr<std::unique_ptr<CudaPrefills>> CudaPrefills::Create(const Config& config, const CudaWeights* weights,
                                                                   std::shared_ptr<CudaGemmLibrary> gemms,
                                                                   std::shared_ptr<CudaPagePool> pool,
                                                                   std::unique_ptr<CudaHistoryTokens> tokens) {
  auto made = std::make_unique<CudaPrefills>();
  for (size_t i = 0; i < kSideBySide; ++i) {
    Place place;
    auto prefill = CudaPrefill::Create(config, weights, gemms, pool);
    if (!prefill.ok() && i > 0 && absl::IsResourceExhausted(prefill.status())) break;
    if (!prefill.ok()) return prefill.status();
    place.prefill = *std::move(prefill);
    if (tokens != nullptr) {
      auto lane = tokens->NewLane();
      if (!lane.ok() && !absl::IsResourceExhausted(lane.status())) return lane.status();
      // Every prefill the same: a user's rows must not depend on which one was free.
      if (!lane.ok() && i > 0) break;
      if (lane.ok()) {
        place.tokens = *std::move(lane);
      } else {
        made->no_tokens_ = lane.status();
        tokens = nullptr;
      }
    }
    made->free_.push_back(std::move(place));
  }
  made->tokens_ = std::move(tokens);
  return made;
}

absl::Status CudaPrefills::Append(std::span<const CudaHistory> channels, std::span<const ChannelRows> tokens,
                                  const CudaPrefill::Tokens& on_host) {
  Place place;
  {
    std::unique_lock lock(mutex_);
    given_.wait(lock, [&] { return !free_.empty(); });
    place = std::move(free_.back());
    free_.pop_back();
  }
  CudaPrefill::CardTokens on_card;
  if (place.tokens != nullptr) {
    on_card = [&](size_t channel, size_t first, size_t count, float* out, void* workspace, void* stream) {
      return tokens_->Run(tokens[channel].tokens, first, count, place.tokens.get(), out, workspace, stream);
    };
  }
  const absl::Status status = place.prefill->Append(channels, on_host, on_card);
  {
    std::lock_guard lock(mutex_);
    free_.push_back(std::move(place));
  }
  given_.notify_one();
  return status;
}

}  // namespace backstory::grab
