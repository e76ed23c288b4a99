#include "models/grab/cuda/history_facts.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>

namespace backstory::grab {
namespace {

// oldest[i] = the oldest row with the tie key of row i, or -1 if that is i itself, for rows [first, rows). Returns the
// oldest of all.
size_t FindOldestTies(const CudaHistory& h, int32_t* oldest) {
  size_t least = h.rows;
  for (size_t i = h.first; i < h.rows; ++i) {
    int32_t at = -1;
    for (int32_t j = h.facts.previous_tie[i]; j >= 0; j = h.facts.previous_tie[static_cast<size_t>(j)]) {
      at = j;
      if (static_cast<size_t>(j) < h.first) continue;
      if (oldest[j] >= 0) at = oldest[j];
      break;
    }
    oldest[i] = at;
    if (at >= 0) least = std::min(least, static_cast<size_t>(at));
  }
  return least;
}

}  // namespace

absl::Status UploadHistoryFacts(const CudaHistory& h, const CudaHistoryFactPlaces& host,
                                const CudaHistoryFactPlaces& card, CudaDevice* device, void* stream) {
  if (h.first == h.rows) return absl::OkStatus();
  absl::Status status;
  const auto send = [&](auto* from, auto* to, size_t first, size_t end) {
    if (!status.ok() || first >= end) return;
    status = device->Check(cudaMemcpyAsync(to + first, from + first, (end - first) * sizeof(*from),
                                           cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream)),
                           "uploading a history");
  };
  // Rows from `first` on, to the same rows.
  const auto copy = [&](auto* to_host, auto* to_card, size_t first, const auto& from) {
    std::copy(from.begin() + static_cast<ptrdiff_t>(std::min(first, from.size())), from.end(), to_host + first);
    send(to_host, to_card, first, from.size());
  };
  const size_t tied = FindOldestTies(h, host.oldest_tie);
  send(host.oldest_tie, card.oldest_tie, h.first, h.rows);
  copy(host.time, card.time, 0, h.facts.time_us.first(h.rows));
  copy(host.tie, card.tie, tied, h.facts.tie.first(h.rows));
  copy(host.previous_tie, card.previous_tie, h.first, h.facts.previous_tie.first(h.rows));
  copy(host.action, card.action, h.first, h.action.first(h.rows));
  copy(host.blocks, card.blocks, 0, h.blocks);
  return status;
}

}  // namespace backstory::grab
