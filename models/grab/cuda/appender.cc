#include "models/grab/cuda/appender.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "models/grab/key_runs.h"

namespace backstory::grab {
namespace {

#define RETURN_IF_ERROR(expression) \
  if (absl::Status status = (expression); !status.ok()) return status

size_t Aligned(size_t bytes) { return (bytes + 127) / 128 * 128; }

class Appender final : public CudaAppender {
 public:
  Appender(const Config& config, const CudaWeights* weights, CudaPagePool* pool)
      : windows_{config.window_rows, WindowUs(config.window_sec)},
        buckets_(config.n_time),
        weights_(*weights),
        pool_(*pool),
        fits_(CudaAppendFits(weights->widths)) {
    args_.widths = weights_.widths;
    args_.post_norm = config.norm == Norm::kPost;
    args_.scale = 1 / std::sqrt(static_cast<float>(config.d_head));
    args_.codes = weights_.codes;
    args_.act = weights_.act;
  }

  absl::Status Allocate() {
    if (!fits_) return absl::OkStatus();
    const CudaWidths& w = weights_.widths;
    const auto channels = static_cast<size_t>(w.channels), rows = channels * kCudaFewRows;
    const size_t inputs =
        Aligned(sizeof(uint32_t)) + Aligned(rows * static_cast<size_t>(w.stride) * 4) +
        channels * (Aligned(kCudaFewRows * static_cast<size_t>(w.n_time) * 4) +
                    Aligned(kCudaFewRows * kCudaAppendTies * 4) + Aligned(CudaPrefill::kRowsMax / kPageRows * 4));
    const CudaAppendRoom room = CudaAppendRoomOf(w);
    const size_t layers = weights_.layers.size() * sizeof(CudaLayerOffsets);
    auto memory = pool_.device().Allocate(Aligned(inputs) + Aligned(layers) + Aligned(room.inner) + Aligned(room.q) +
                                              Aligned(room.hidden) + Aligned(room.parts),
                                          "appended rows");
    if (!memory.ok()) return memory.status();
    memory_ = *std::move(memory);
    auto pinned = pool_.device().Allocate(inputs, "appended rows' inputs", CudaBuffer::Place::kPinned);
    if (!pinned.ok()) return pinned.status();
    pinned_ = *std::move(pinned);
    size_t at = Aligned(inputs);
    const auto place = [&](size_t bytes) { return memory_.as<char>(std::exchange(at, at + Aligned(bytes))); };
    void* const on_card = place(layers);
    args_.inner = place(room.inner);
    args_.q = place(room.q);
    args_.hidden = place(room.hidden);
    args_.parts = reinterpret_cast<float*>(place(room.parts));
    args_.layers = static_cast<const CudaLayerOffsets*>(on_card);
    args_.matrices = weights_.matrix(0);
    args_.vectors = weights_.vector(0);
    args_.pool = pool_.data();
    return Check(cudaMemcpy(on_card, weights_.layers.data(), layers, cudaMemcpyHostToDevice));
  }

  bool Takes(std::span<const CudaHistory> channels) const override {
    if (!fits_) return false;
    for (const CudaHistory& h : channels) {
      if (h.rows - h.first > kCudaFewRows) return false;
      for (size_t i = h.first; i < h.rows; ++i) {
        int ties = 0;
        for (int32_t j = h.facts.previous_tie[i]; j >= 0; j = h.facts.previous_tie[static_cast<size_t>(j)]) {
          if (++ties > kCudaAppendTies) return false;
        }
      }
    }
    return true;
  }

  absl::Status Upload(std::span<const CudaHistory> channels, const CudaPrefill::Tokens& tokens, void* stream) override {
    const auto stride = static_cast<size_t>(weights_.widths.stride);
    size_t at = 0;
    // The same place in pinned memory and on the card.
    const auto place = [&]<typename T>(T** host, size_t count) {
      *host = pinned_.as<T>(at);
      return memory_.as<T>(std::exchange(at, at + Aligned(count * sizeof(T))));
    };
    uint32_t* barrier = nullptr;
    args_.barrier = place(&barrier, 1);
    *barrier = 0;
    args_.active = 0;
    for (const CudaHistory& h : channels) args_.active += h.first < h.rows;
    float* x = nullptr;
    args_.x = place(&x, static_cast<size_t>(args_.active) * kCudaFewRows * stride);
    int active = 0;
    for (size_t c = 0; c < channels.size(); ++c) {
      const CudaHistory& h = channels[c];
      if (h.first == h.rows) continue;
      CudaAppendChannel& to = args_.channel[active];
      to = {.channel = static_cast<int>(c),
            .first = static_cast<int>(h.first),
            .rows = static_cast<int>(h.rows - h.first)};
      tokens(c, h.first, h.rows - h.first, stride, x + static_cast<size_t>(active) * kCudaFewRows * stride);
      int32_t *begins = nullptr, *ties = nullptr, *blocks = nullptr;
      to.bucket_begin = place(&begins, static_cast<size_t>(to.rows) * buckets_.count());
      to.ties = place(&ties, static_cast<size_t>(to.rows) * kCudaAppendTies);
      to.blocks = place(&blocks, h.blocks.size());
      std::copy(h.blocks.begin(), h.blocks.end(), blocks);
      for (int r = 0; r < to.rows; ++r) {
        const size_t i = h.first + static_cast<size_t>(r);
        to.action[r] = h.action[i];
        to.oldest[r] = Oldest(h, i);
        for (int32_t j = h.facts.previous_tie[i]; j >= 0; j = h.facts.previous_tie[static_cast<size_t>(j)]) {
          ties[r * kCudaAppendTies + to.tied[r]++] = j;
        }
        FindBegins(h, i, begins + static_cast<size_t>(r) * buckets_.count());
      }
      ++active;
    }
    return Check(
        cudaMemcpyAsync(memory_.data(), pinned_.data(), at, cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream)));
  }

  absl::Status Launch(void* stream) override {
    return pool_.device().CheckText(CudaAppend(args_, stream), "appending rows");
  }

 private:
  absl::Status Check(int code) const { return pool_.device().Check(code, "appending rows"); }

  int32_t Oldest(const CudaHistory& h, size_t i) const {
    const auto time = h.facts.time_us;
    size_t oldest = windows_.rows < static_cast<int64_t>(i) ? i - static_cast<size_t>(windows_.rows) : 0;
    if (time[i] - time[0] > windows_.age_us) {
      const auto from =
          std::lower_bound(time.begin(), time.begin() + static_cast<ptrdiff_t>(i), time[i] - windows_.age_us);
      oldest = std::max(oldest, static_cast<size_t>(from - time.begin()));
    }
    return static_cast<int32_t>(oldest);
  }

  // As CudaHistoryRows::bucket_begin.
  void FindBegins(const CudaHistory& h, size_t i, int32_t* begins) const {
    const auto time = h.facts.time_us;
    auto end = time.begin() + static_cast<ptrdiff_t>(i);
    for (uint32_t b = 0; b < buckets_.count(); ++b) {
      if (b + 1 == buckets_.count() || time[i] - time[0] < buckets_.edge(b + 1)) {
        std::fill(begins + b, begins + buckets_.count(), 0);
        return;
      }
      end = std::upper_bound(time.begin(), end, time[i] - buckets_.edge(b + 1));
      begins[b] = static_cast<int32_t>(end - time.begin());
    }
  }

  const Windows windows_;
  const TimeBuckets buckets_;
  const CudaWeights& weights_;
  CudaPagePool& pool_;
  const bool fits_;
  CudaBuffer memory_, pinned_;
  CudaAppendArgs args_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<CudaAppender>> CudaAppender::Create(const Config& config, const CudaWeights* weights,
                                                                   CudaPagePool* pool) {
  auto appender = std::make_unique<Appender>(config, weights, pool);
  if (absl::Status status = appender->Allocate(); !status.ok()) return status;
  return appender;
}

}  // namespace backstory::grab
