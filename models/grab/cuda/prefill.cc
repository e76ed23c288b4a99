#include "models/grab/cuda/prefill.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "models/grab/cuda/appender.h"
#include "models/grab/cuda/history_facts.h"
#include "models/grab/cuda/history_kernels.h"
#include "models/grab/cuda/network.h"
#include "models/grab/cuda/row_kernels.h"

namespace backstory::grab {
namespace {

#define RETURN_IF_ERROR(expression) \
  if (absl::Status status = (expression); !status.ok()) return status

// Channels that go through a product together: all of them where they are short, else each by itself.
struct Group {
  int first, channels, rows;  // rows: padded, of each
};

class Prefill final : public CudaPrefill {
 public:
  Prefill(const Config& config, const CudaWeights* weights, std::shared_ptr<CudaGemmLibrary> gemms,
          std::shared_ptr<CudaPagePool> pool)
      : norm_(config.norm),
        windows_{config.window_rows, WindowUs(config.window_sec)},
        buckets_(config.n_time),
        scale_(1 / std::sqrt(static_cast<float>(config.d_head))),
        weights_(*weights),
        gemms_(std::move(gemms)),
        pool_(std::move(pool)) {}
  ~Prefill() override {
    if (stream_ != nullptr) static_cast<void>(cudaStreamDestroy(stream_));
    for (cudaEvent_t event : {start_, end_}) {
      if (event != nullptr) static_cast<void>(cudaEventDestroy(event));
    }
  }

  absl::Status Allocate(const Config& config);
  absl::Status Append(std::span<const CudaHistory> channels, const Tokens& tokens, const CardTokens& on_card) override;
  double last_milliseconds() const override { return milliseconds_; }

 private:
  struct Chunk {
    size_t first = 0, rows = 0;
  };

  absl::Status AppendMany(std::span<const CudaHistory> channels, const Tokens& tokens, const CardTokens& on_card);
  absl::Status AppendFew(std::span<const CudaHistory> channels, const Tokens& tokens);
  // `by_host` becomes true if the card will read host_rows_.
  absl::Status MakeTokens(int channel, const Chunk& chunk, const Tokens& tokens, const CardTokens& on_card,
                          bool* by_host);
  absl::Status Wait();
  absl::Status Pass(std::span<const Chunk> chunks);
  absl::Status Layer(int layer, std::span<const Group> groups, CudaHistoryArgs* args);
  absl::Status FinishLayer(int layer, std::span<const Group> groups);
  absl::Status Norm(const Group& group, size_t n_g, size_t n_b, bool residual);
  // Y[c] = X[c] W[c]^T for the group's channels; strides between channels in elements.
  absl::Status Product(const Group& group, CudaGemmShape shape, const void* x, size_t w, const void* bias, void* y);
  static std::vector<Group> GroupsOf(std::span<const Chunk> chunks);

  CudaDevice& device() const { return pool_->device(); }
  absl::Status Check(int code, const char* what) const { return device().Check(code, what); }
  template <typename T>
  T* At(void* base, int channel, int width) const {
    return static_cast<T*>(base) + static_cast<size_t>(channel) * kChunkRows * static_cast<size_t>(width);
  }

  const grab::Norm norm_;
  const Windows windows_;
  const TimeBuckets buckets_;
  const float scale_;
  const CudaWeights& weights_;
  const std::shared_ptr<CudaGemmLibrary> gemms_;
  const std::shared_ptr<CudaPagePool> pool_;

  std::mutex mutex_;  // guards all that follows
  std::unique_ptr<CudaAppender> appender_;
  CudaBuffer memory_, pinned_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t start_ = nullptr, end_ = nullptr;
  std::vector<CudaHistoryFactPlaces> host_, card_;
  float *host_rows_ = nullptr, *input_ = nullptr, *x_ = nullptr, *table_ = nullptr;
  int64_t* edges_ = nullptr;
  CudaHistoryLimits* limits_ = nullptr;
  int32_t* bucket_begin_ = nullptr;
  uint8_t* codes_ = nullptr;
  float* parts_ = nullptr;
  void *z_ = nullptr, *inner_ = nullptr, *qkv_ = nullptr, *attended_ = nullptr, *ffn_ = nullptr, *workspace_ = nullptr;
  std::map<std::vector<int64_t>, std::unique_ptr<CudaGemm>> products_;
  double milliseconds_ = 0;
};

absl::Status Prefill::Allocate(const Config& config) {
  auto appender = CudaAppender::Create(config, &weights_, pool_.get());
  if (!appender.ok()) return appender.status();
  appender_ = *std::move(appender);
  const CudaWidths& w = weights_.widths;
  const auto size = [](int n) { return static_cast<size_t>(n); };
  const size_t all = kChunkRows * size(w.channels);
  size_t bytes = 0, shared = 0;
  std::vector<std::pair<void**, size_t>> places;
  const auto place = [&](auto** to, size_t count, size_t element) {
    places.emplace_back(reinterpret_cast<void**>(to), bytes);
    bytes += (count * element + 1023) / 1024 * 1024;
  };
  host_.resize(size(w.channels));
  card_.resize(size(w.channels));
  for (CudaHistoryFactPlaces& facts : card_) {
    place(&facts.time, kRowsMax, 8);
    place(&facts.tie, kRowsMax, 8);
    place(&facts.previous_tie, kRowsMax, 4);
    place(&facts.oldest_tie, kRowsMax, 4);
    place(&facts.action, kRowsMax, 4);
    place(&facts.blocks, kRowsMax / kPageRows, 4);
  }
  place(&edges_, size(w.n_time), 8);
  place(&input_, all * size(w.stride), 4);
  shared = bytes;
  place(&x_, all * size(w.stride), 4);
  place(&z_, all * size(w.stride), 2);
  place(&inner_, w.latent > 0 ? all * size(w.inner) : 0, 2);
  place(&qkv_, all * size(3 * w.wide), 2);
  place(&table_, all * size(w.heads * w.table), 4);
  place(&limits_, all, sizeof(CudaHistoryLimits));
  place(&bucket_begin_, all * size(w.n_time), 4);
  place(&parts_, CudaHistoryPartBytes(w.d_h), 1);
  place(&codes_, all * kPageRows * kCudaHistoryCodedPages, 1);
  place(&attended_, all * size(w.wide), 2);
  place(&ffn_, all * size(w.ffn), 2);
  place(&workspace_, CudaGemmLibrary::kWorkspaceBytes, 1);
  auto memory = device().Allocate(bytes, "prefill");
  if (!memory.ok()) return memory.status();
  memory_ = *std::move(memory);
  auto pinned = device().Allocate(shared, "prefill's inputs", CudaBuffer::Place::kPinned);
  if (!pinned.ok()) return pinned.status();
  pinned_ = *std::move(pinned);
  for (const auto& [to, at] : places) *to = memory_.as<char>(at);
  const auto on_host = [&](auto* on_card) {
    return reinterpret_cast<decltype(on_card)>(pinned_.as<char>() +
                                               (reinterpret_cast<char*>(on_card) - memory_.as<char>()));
  };
  for (size_t c = 0; c < card_.size(); ++c) {
    const CudaHistoryFactPlaces& f = card_[c];
    host_[c] = {on_host(f.time),       on_host(f.tie),    on_host(f.previous_tie),
                on_host(f.oldest_tie), on_host(f.action), on_host(f.blocks)};
  }
  host_rows_ = on_host(input_);
  RETURN_IF_ERROR(Check(cudaMemset(memory_.data(), 0, bytes), "prefill"));
  std::vector<int64_t> edges;
  for (uint32_t b = 0; b < buckets_.count(); ++b) edges.push_back(buckets_.edge(b));
  RETURN_IF_ERROR(Check(cudaMemcpy(edges_, edges.data(), edges.size() * 8, cudaMemcpyHostToDevice), "prefill"));
  RETURN_IF_ERROR(Check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "prefill"));
  RETURN_IF_ERROR(Check(cudaEventCreate(&start_), "prefill"));
  RETURN_IF_ERROR(Check(cudaEventCreate(&end_), "prefill"));
  return Check(cudaDeviceSynchronize(), "prefill");
}

std::vector<Group> Prefill::GroupsOf(std::span<const Chunk> chunks) {
  constexpr int kTogether = 256;  // so few rows cost less than another launch
  std::vector<Group> apart;
  int most = 0, all = 0;
  for (size_t c = 0; c < chunks.size(); ++c) {
    if (chunks[c].rows == 0) continue;
    const int rows = CudaNetwork::Bucket(static_cast<int>(chunks[c].rows));
    apart.push_back({static_cast<int>(c), 1, rows});
    most = std::max(most, rows), all += rows;
  }
  // A tenth more rows are worth half the launches.
  const int channels = static_cast<int>(chunks.size());
  if (most <= kTogether || most * channels * 10 <= all * 11) return {{0, channels, most}};
  return apart;
}

absl::Status Prefill::Product(const Group& group, CudaGemmShape s, const void* x, size_t w, const void* bias, void* y) {
  s.m = group.rows;
  const std::vector<int64_t> key{s.m,        s.n,        s.k,        s.batch,           s.ldx,           s.ldy,
                                 s.x_stride, s.w_stride, s.y_stride, s.output_is_float, s.add_to_output, s.relu,
                                 s.bias};
  std::unique_ptr<CudaGemm>& product = products_[key];
  if (product == nullptr) {
    auto made = CudaGemm::Create(gemms_, s);
    if (!made.ok()) return made.status();
    product = *std::move(made);
  }
  return product->Run(x, weights_.matrix(w), bias, y, workspace_, stream_);
}

absl::Status Prefill::Norm(const Group& group, size_t n_g, size_t n_b, bool residual) {
  const CudaWidths& w = weights_.widths;
  const int64_t stride = static_cast<int64_t>(kChunkRows) * w.stride;
  const size_t offset = static_cast<size_t>(group.first) * static_cast<size_t>(w.stride);
  CudaRowsArgs rows{.rows = group.rows,
                    .channels = group.channels,
                    .d = w.d,
                    .stride = w.stride,
                    .in_channel_stride = stride,
                    .out_channel_stride = stride,
                    .in = At<float>(x_, group.first, w.stride),
                    .z = At<uint16_t>(z_, group.first, w.stride)};
  const float *g = weights_.vector(n_g) + offset, *b = weights_.vector(n_b) + offset;
  if (residual) {
    rows.n_g = g, rows.n_b = b;
    rows.x = At<float>(x_, group.first, w.stride);
  } else {
    rows.z_g = g, rows.z_b = b;
  }
  return device().CheckText(CudaRows(rows, stream_), "norm");
}

absl::Status Prefill::FinishLayer(int l, std::span<const Group> groups) {
  const CudaWidths& w = weights_.widths;
  const CudaLayerOffsets& o = weights_.layers[static_cast<size_t>(l)];
  const bool post = norm_ == grab::Norm::kPost;
  const int64_t chunk = kChunkRows;
  for (const Group& g : groups) {
    const auto shape = [&](int n, int k) {
      return CudaGemmShape{.n = n,
                           .k = k,
                           .batch = g.channels,
                           .ldx = k,
                           .ldy = n,
                           .x_stride = chunk * k,
                           .w_stride = int64_t{n} * k,
                           .y_stride = chunk * n,
                           .bias_stride = n};
    };
    const size_t c = static_cast<size_t>(g.first);
    const auto skip = [&](size_t at, int n, int k) { return at + c * static_cast<size_t>(n) * static_cast<size_t>(k); };
    CudaGemmShape out = shape(w.stride, w.wide);
    out.output_is_float = out.add_to_output = true;
    RETURN_IF_ERROR(Product(g, out, At<uint16_t>(attended_, g.first, w.wide), skip(o.wo, w.stride, w.wide), nullptr,
                            At<float>(x_, g.first, w.stride)));
    RETURN_IF_ERROR(Norm(g, post ? o.n1_g : o.n2_g, post ? o.n1_b : o.n2_b, post));
    CudaGemmShape ffn1 = shape(w.ffn, w.stride);
    ffn1.bias = ffn1.relu = true;
    RETURN_IF_ERROR(Product(g, ffn1, At<uint16_t>(z_, g.first, w.stride), skip(o.w1, w.ffn, w.stride),
                            weights_.matrix(skip(o.b1, w.ffn, 1)), At<uint16_t>(ffn_, g.first, w.ffn)));
    CudaGemmShape ffn2 = shape(w.stride, w.ffn);
    ffn2.output_is_float = ffn2.add_to_output = ffn2.bias = true;
    RETURN_IF_ERROR(Product(g, ffn2, At<uint16_t>(ffn_, g.first, w.ffn), skip(o.w2, w.stride, w.ffn),
                            weights_.vector(skip(o.b2, w.stride, 1)), At<float>(x_, g.first, w.stride)));
    if (post) {
      RETURN_IF_ERROR(Norm(g, o.n2_g, o.n2_b, true));
    } else if (l + 1 < w.layers) {
      const CudaLayerOffsets& next = weights_.layers[static_cast<size_t>(l) + 1];
      RETURN_IF_ERROR(Norm(g, next.n1_g, next.n1_b, false));
    }
  }
  return absl::OkStatus();
}

absl::Status Prefill::Layer(int l, std::span<const Group> groups, CudaHistoryArgs* args) {
  const CudaWidths& w = weights_.widths;
  const CudaLayerOffsets& o = weights_.layers[static_cast<size_t>(l)];
  const bool last = l + 1 == w.layers;
  const int64_t chunk = kChunkRows;
  for (const Group& g : groups) {
    const size_t c = static_cast<size_t>(g.first);
    const uint16_t* z = At<uint16_t>(z_, g.first, w.stride);
    if (w.latent > 0) {
      RETURN_IF_ERROR(Product(g,
                              {.n = w.inner,
                               .k = w.stride,
                               .batch = g.channels,
                               .ldx = w.stride,
                               .ldy = w.inner,
                               .x_stride = chunk * w.stride,
                               .w_stride = int64_t{w.inner} * w.stride,
                               .y_stride = chunk * w.inner},
                              z, o.wd + c * static_cast<size_t>(w.inner) * static_cast<size_t>(w.stride), nullptr,
                              At<uint16_t>(inner_, g.first, w.inner)));
      z = At<uint16_t>(inner_, g.first, w.inner);
    }
    // The last layer's queries are nobody's.
    const int skip = last ? w.wide : 0;
    RETURN_IF_ERROR(Product(
        g,
        {.n = 3 * w.wide - skip,
         .k = w.inner,
         .batch = g.channels,
         .ldx = w.inner,
         .ldy = 3 * w.wide,
         .x_stride = chunk * w.inner,
         .w_stride = int64_t{3} * w.wide * w.inner,
         .y_stride = chunk * 3 * w.wide},
        z, o.wqkv + (c * 3 * static_cast<size_t>(w.wide) + static_cast<size_t>(skip)) * static_cast<size_t>(w.inner),
        nullptr, At<uint16_t>(qkv_, g.first, 3 * w.wide) + skip));
  }
  args->layer = l;
  for (int c = 0; c < w.channels; ++c) {
    const size_t lc = static_cast<size_t>(l * w.channels + c);
    args->channel[c].bact = weights_.vector(weights_.act) + lc * static_cast<size_t>(w.n_act * w.d_h);
  }
  RETURN_IF_ERROR(device().CheckText(CudaWriteKv(*args, stream_), "writing K/V"));
  if (last) return absl::OkStatus();
  for (const Group& g : groups) {
    for (int c = g.first; c < g.first + g.channels; ++c) {
      // All heads of a channel side by side.
      const size_t lc = static_cast<size_t>(l * w.channels + c);
      RETURN_IF_ERROR(Product(g,
                              {.n = w.table,
                               .k = w.d_h,
                               .batch = w.heads,
                               .ldx = 3 * w.wide,
                               .ldy = w.heads * w.table,
                               .x_stride = w.d_h,
                               .w_stride = 0,
                               .y_stride = w.table,
                               .output_is_float = true},
                              At<uint16_t>(qkv_, c, 3 * w.wide),
                              weights_.codes + lc * static_cast<size_t>(w.table * w.d_h), nullptr,
                              At<float>(table_, c, w.heads * w.table)));
    }
  }
  RETURN_IF_ERROR(device().CheckText(CudaHistoryAttend(*args, stream_), "history attention"));
  return FinishLayer(l, groups);
}

absl::Status Prefill::Pass(std::span<const Chunk> chunks) {
  const CudaWidths& w = weights_.widths;
  CudaHistoryArgs args{.channels = w.channels,
                       .heads = w.heads,
                       .d_h = w.d_h,
                       .layers = w.layers,
                       .n_pos = w.n_pos,
                       .n_time = std::min(w.n_time, kCudaHistoryTimes),
                       .table_width = w.table,
                       .scale = scale_,
                       .window_rows = windows_.rows,
                       .window_us = windows_.age_us,
                       .edges = edges_,
                       .chunk_rows = static_cast<int64_t>(kChunkRows),
                       .qkv = qkv_,
                       .table = table_,
                       .o = attended_,
                       .parts = parts_,
                       .pool = pool_->data(),
                       .pool_blocks = static_cast<int64_t>(pool_->blocks())};
  for (int c = 0; c < w.channels; ++c) {
    const CudaHistoryFactPlaces& f = card_[static_cast<size_t>(c)];
    const Chunk& chunk = chunks[static_cast<size_t>(c)];
    args.channel[c] = {.first = static_cast<int>(chunk.first),
                       .rows = static_cast<int>(chunk.rows),
                       .blocks = f.blocks,
                       .time_us = f.time,
                       .tie = f.tie,
                       .previous_tie = f.previous_tie,
                       .oldest_tie = f.oldest_tie,
                       .action = f.action,
                       .limits = At<CudaHistoryLimits>(limits_, c, 1),
                       .bucket_begin = At<int32_t>(bucket_begin_, c, w.n_time),
                       .codes = At<uint8_t>(codes_, c, kPageRows * kCudaHistoryCodedPages)};
  }
  args.splits = CudaHistorySplits(args);
  RETURN_IF_ERROR(device().CheckText(CudaHistoryFacts(args, stream_), "history facts"));
  const std::vector<Group> groups = GroupsOf(chunks);
  for (const Group& g : groups) {
    const size_t bytes = static_cast<size_t>(g.rows) * static_cast<size_t>(w.stride) * sizeof(float);
    for (int c = g.first; c < g.first + g.channels; ++c) {
      RETURN_IF_ERROR(Check(cudaMemcpyAsync(At<float>(x_, c, w.stride), At<float>(input_, c, w.stride), bytes,
                                            cudaMemcpyDeviceToDevice, stream_),
                            "prefill"));
    }
    const CudaLayerOffsets& first = weights_.layers.front();
    if (norm_ == grab::Norm::kPre) {
      RETURN_IF_ERROR(Norm(g, first.n1_g, first.n1_b, false));
      continue;
    }
    // x, rounded: the first layer's input.
    RETURN_IF_ERROR(device().CheckText(CudaRows({.rows = g.rows,
                                                 .channels = g.channels,
                                                 .d = w.d,
                                                 .stride = w.stride,
                                                 .in_channel_stride = static_cast<int64_t>(kChunkRows) * w.stride,
                                                 .out_channel_stride = static_cast<int64_t>(kChunkRows) * w.stride,
                                                 .in = At<float>(x_, g.first, w.stride),
                                                 .z = At<uint16_t>(z_, g.first, w.stride)},
                                                stream_),
                                       "rows"));
  }
  for (int l = 0; l < w.layers; ++l) RETURN_IF_ERROR(Layer(l, groups, &args));
  return absl::OkStatus();
}

absl::Status Prefill::MakeTokens(int c, const Chunk& chunk, const Tokens& tokens, const CardTokens& on_card,
                                 bool* by_host) {
  const size_t stride = static_cast<size_t>(weights_.widths.stride);
  float* const to = At<float>(input_, c, weights_.widths.stride);
  if (on_card != nullptr) {
    const absl::Status made = on_card(static_cast<size_t>(c), chunk.first, chunk.rows, to, workspace_, stream_);
    if (!absl::IsResourceExhausted(made)) return made;
  }
  *by_host = true;
  float* const rows = At<float>(host_rows_, c, weights_.widths.stride);
  tokens(static_cast<size_t>(c), chunk.first, chunk.rows, stride, rows);
  return Check(cudaMemcpyAsync(to, rows, chunk.rows * stride * sizeof(float), cudaMemcpyHostToDevice, stream_),
               "uploading a history");
}

absl::Status Prefill::Append(std::span<const CudaHistory> channels, const Tokens& tokens, const CardTokens& on_card) {
  std::lock_guard lock(mutex_);
  RETURN_IF_ERROR(device().Select());
  for (const CudaHistory& channel : channels) {
    if (channel.rows > kRowsMax) {
      return absl::ResourceExhaustedError(
          absl::StrCat(channel.rows, " rows of one channel, the card takes ", kRowsMax));
    }
  }
  milliseconds_ = 0;
  const absl::Status status =
      appender_->Takes(channels) ? AppendFew(channels, tokens) : AppendMany(channels, tokens, on_card);
  // What was enqueued before a failure must not write to blocks that are somebody else's by then.
  if (!status.ok()) static_cast<void>(cudaStreamSynchronize(stream_));
  return status;
}

absl::Status Prefill::AppendMany(std::span<const CudaHistory> channels, const Tokens& tokens,
                                 const CardTokens& on_card) {
  bool begun = false, by_host = false;
  std::vector<Chunk> chunks(channels.size());
  for (size_t c = 0; c < channels.size(); ++c) chunks[c].first = channels[c].first;
  while (true) {
    // The last chunk's rows are overwritten.
    if (std::exchange(by_host, false)) RETURN_IF_ERROR(Check(cudaStreamSynchronize(stream_), "prefill"));
    bool more = false;
    for (size_t c = 0; c < channels.size(); ++c) {
      chunks[c].first += chunks[c].rows;
      // Chunks end at pages, so that a page's tail is written once.
      chunks[c].rows = std::min(kChunkRows - chunks[c].first % kPageRows, channels[c].rows - chunks[c].first);
      if (chunks[c].rows == 0) continue;
      more = true;
      RETURN_IF_ERROR(MakeTokens(static_cast<int>(c), chunks[c], tokens, on_card, &by_host));
    }
    if (!more) return begun ? Wait() : absl::OkStatus();
    if (!std::exchange(begun, true)) {
      // While the card makes the first chunk's tokens.
      for (size_t c = 0; c < channels.size(); ++c) {
        RETURN_IF_ERROR(UploadHistoryFacts(channels[c], host_[c], card_[c], &device(), stream_));
      }
      RETURN_IF_ERROR(Check(cudaEventRecord(start_, stream_), "prefill"));
    }
    RETURN_IF_ERROR(Pass(chunks));
  }
}

absl::Status Prefill::AppendFew(std::span<const CudaHistory> channels, const Tokens& tokens) {
  RETURN_IF_ERROR(appender_->Upload(channels, tokens, stream_));
  RETURN_IF_ERROR(Check(cudaEventRecord(start_, stream_), "prefill"));
  RETURN_IF_ERROR(appender_->Launch(stream_));
  return Wait();
}

absl::Status Prefill::Wait() {
  RETURN_IF_ERROR(Check(cudaEventRecord(end_, stream_), "prefill"));
  RETURN_IF_ERROR(Check(cudaStreamSynchronize(stream_), "prefill"));
  float ms = 0;
  RETURN_IF_ERROR(Check(cudaEventElapsedTime(&ms, start_, end_), "prefill"));
  milliseconds_ += ms;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaPrefill>> CudaPrefill::Create(const Config& config, const CudaWeights* weights,
                                                                 std::shared_ptr<CudaGemmLibrary> gemms,
                                                                 std::shared_ptr<CudaPagePool> pool) {
  if (config.channels() > kCudaHistoryChannels) {
    return absl::InvalidArgumentError(
        absl::StrCat(config.channels(), " channels, prefill on the card takes ", kCudaHistoryChannels));
  }
  auto prefill = std::make_unique<Prefill>(config, weights, std::move(gemms), std::move(pool));
  if (absl::Status status = prefill->Allocate(config); !status.ok()) return status;
  return prefill;
}

}  // namespace backstory::grab
