#include "models/grab/cuda/network.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/layer.h"
#include "models/grab/cuda/lane.h"

namespace backstory::grab {
namespace {

constexpr int kBuckets[] = {64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192};

// Launches of at most these rows go through kernels/cuda/layer.h where the widths fit, larger ones through cuBLASLt,
// which is faster then (tests/bench/RESULTS.md).
constexpr int kFusedProjectRowsMax = 2048, kFusedFinishRowsMax = 1024;

class Network final : public CudaNetwork {
 public:
  Network(std::shared_ptr<CudaGemmLibrary> gemms, std::shared_ptr<CudaPagePool> pool, CudaWeights weights, Norm norm,
          bool mixing)
      : gemms_(std::move(gemms)),
        pool_(std::move(pool)),
        weights_(std::move(weights)),
        norm_(norm),
        mixing_(mixing),
        scale_(1 / std::sqrt(static_cast<float>(weights_.widths.d_head))) {
    const CudaWidths& w = weights_.widths;
    project_fits_ = cuda::ProjectFits(w.inner, 3 * w.wide, w.heads * w.segments);
    finish_fits_ = norm == Norm::kPost && w.d == w.stride &&
                   cuda::FinishFits(w.channels, w.d, w.wide, w.ffn, mixing && w.channels > 1 && w.layers > 1);
    head_fits_ = cuda::HeadFits(w.channels * w.stride, w.hidden, w.tasks);
  }

  const CudaWidths& widths() const override { return weights_.widths; }
  const CudaWeights& weights() const override { return weights_; }
  size_t bytes() const override { return weights_.matrices.bytes() + weights_.vectors.bytes(); }
  absl::StatusOr<std::unique_ptr<CudaLane>> NewLane() const override {
    return Lane::Create(weights_.widths, &pool_->device());
  }
  absl::Status Score(std::span<const CudaSegment> segments, int rows, CudaLane* lane) const override;
  absl::Status Prepare(std::span<const CudaSegment> segments, int rows, CudaLane* lane) const override;
  absl::Status Run(CudaLane* lane) const override;
  absl::Status Wait(CudaLane* lane) const override;
  absl::Status RunBySteps(CudaLane* lane, const std::function<void(const char* step)>& after) const override;
  absl::Status Warm(int rows_max, CudaLane* lane) const override;

 private:
  absl::Status Upload(std::span<const CudaSegment> segments, int bucket, Lane* lane) const;
  using AfterStep = std::function<void(const char* step)>;
  absl::Status Enqueue(int rows, Lane* lane, const Lane::Products& products, const AfterStep& after = {}) const;
  absl::Status BeforeLayer(int layer, int rows, Lane* lane) const;
  absl::Status Layer(int layer, int rows, Lane* lane, const Lane::Products& products, const AfterStep& after) const;
  absl::Status Project(int layer, int rows, Lane* lane, const Lane::Products& products) const;
  absl::Status Finish(int layer, int rows, Lane* lane, const Lane::Products& products) const;
  absl::Status FinishByProducts(int layer, int rows, Lane* lane, const Lane::Products& products) const;
  absl::Status Head(int rows, Lane* lane, const Lane::Products& products) const;
  bool FusedProject(int rows) const { return project_fits_ && rows <= kFusedProjectRowsMax; }
  bool FusedFinish(int rows) const { return finish_fits_ && rows <= kFusedFinishRowsMax; }
  absl::Status Fold(Lane* lane) const;
  absl::Status Attend(int layer, int rows, bool overlap, Lane* lane) const;
  absl::Status Capture(int rows, Lane* lane, Lane::Program* program) const;
  absl::StatusOr<std::shared_ptr<const Lane::Products>> ProductsFor(int rows) const;
  CudaDevice& device() const { return pool_->device(); }
  absl::Status Check(int code, const char* what) const { return device().Check(code, what); }

  const std::shared_ptr<CudaGemmLibrary> gemms_;
  const std::shared_ptr<CudaPagePool> pool_;
  const CudaWeights weights_;
  const Norm norm_;
  const bool mixing_;
  const float scale_;
  // Whether kernels/cuda/layer.h has kernels for these widths.
  bool project_fits_ = false, finish_fits_ = false, head_fits_ = false;
  mutable std::mutex mutex_;
  mutable std::map<int, std::shared_ptr<const Lane::Products>> products_;  // guarded by mutex_; by rows
};

#define RETURN_IF_ERROR(expression) \
  if (absl::Status status = (expression); !status.ok()) return status

absl::StatusOr<std::shared_ptr<const Lane::Products>> Network::ProductsFor(int rows) const {
  std::lock_guard lock(mutex_);
  std::shared_ptr<const Lane::Products>& made = products_[rows];
  if (made != nullptr) return made;
  auto products = Lane::MakeProducts(weights_.widths, rows, gemms_);
  if (!products.ok()) return products.status();
  made = std::make_shared<const Lane::Products>(*std::move(products));
  return made;
}

absl::Status Network::Upload(std::span<const CudaSegment> segments, int bucket, Lane* lane) const {
  const CudaWidths& w = weights_.widths;
  std::vector<cuda::Problem> problems;
  size_t entries = 0, folds = 0;
  for (const CudaSegment& segment : segments) {
    for (const CudaChannelPages& channel : segment.channels) {
      entries += channel.entries.size();
      folds += channel.folds.size();
    }
  }
  if (entries > Lane::kEntriesMax || folds > Lane::kFoldsMax) {
    return absl::ResourceExhaustedError(absl::StrCat(entries, " pages and ", folds, " folded rows in one launch, the ",
                                                     "limits are ", Lane::kEntriesMax, " and ", Lane::kFoldsMax));
  }
  size_t entry = 0, fold = 0;
  for (int c = 0; c < w.channels; ++c) {
    for (const CudaSegment& segment : segments) {
      if (segment.rows == 0) continue;
      const CudaChannelPages& channel = segment.channels[static_cast<size_t>(c)];
      problems.push_back({.bias = int64_t{c} * w.heads * w.segments * bucket + segment.first_row,
                          .first_row = c * bucket + segment.first_row,
                          .rows = segment.rows,
                          .first_page = static_cast<int32_t>(entry),
                          .pages = static_cast<int32_t>(channel.entries.size()),
                          .segments = w.segments,
                          .bias_stride = bucket});
      std::copy(channel.entries.begin(), channel.entries.end(), lane->host.entries() + entry);
      std::copy(channel.folds.begin(), channel.folds.end(), lane->host.folds() + fold);
      entry += channel.entries.size();
      fold += channel.folds.size();
    }
  }
  cuda::PlanOptions options{.heads = w.heads,
                            .d_h = w.d_h,
                            .blocks = device().multiprocessors(),
                            .tiles = w.channels * w.heads * ((bucket + 127) / cuda::TileRows(w.d_h))};
  cuda::AttendPlan plan = cuda::PlanAttend(problems, options);
  const auto fits = [&] {
    return cuda::PartBytes(plan, w.d_h) <= Lane::kPartBytes && cuda::CounterBytes(plan, w.d_h) <= Lane::kCounterBytes;
  };
  if (!fits()) {  // many tiles keep the card busy without sharing any
    options.item_splits = 8;
    plan = cuda::PlanAttend(problems, options);
  }
  if (!fits() || plan.items.size() > Lane::kItemsMax) {
    return absl::ResourceExhaustedError(
        absl::StrCat(plan.items.size(), " work items in one launch, the limit is ", Lane::kItemsMax));
  }
  *lane->host.fold_count() = static_cast<int32_t>(fold);
  std::copy(plan.items.begin(), plan.items.end(), lane->host.items());
  const auto copy = [&](size_t at, size_t bytes) {
    return bytes == 0 ? absl::OkStatus()
                      : Check(cudaMemcpyAsync(lane->card.data + at, lane->host.data + at, bytes, cudaMemcpyHostToDevice,
                                              lane->cuda_stream),
                              "uploading a request");
  };
  using Inputs = Lane::Inputs;
  RETURN_IF_ERROR(copy(0, Inputs::kItemsAt + plan.items.size() * sizeof(cuda::WorkItem)));
  RETURN_IF_ERROR(copy(Inputs::kEntriesAt, entry * sizeof(cuda::PageEntry)));
  RETURN_IF_ERROR(copy(Inputs::kFoldsAt, fold * sizeof(CudaFoldRow)));
  if (lane->rows_are_on_card) return absl::OkStatus();
  return copy(Inputs::kRowsAt, sizeof(float) * static_cast<size_t>(bucket) * static_cast<size_t>(w.stride));
}

absl::Status Network::Fold(Lane* lane) const {
  const CudaWidths& w = weights_.widths;
  return device().CheckText(CudaFold({.layers = w.layers,
                                      .channels = w.channels,
                                      .heads = w.heads,
                                      .d_h = w.d_h,
                                      .n_pos = w.n_pos,
                                      .n_time = w.n_time,
                                      .count = lane->card.fold_count(),
                                      .rows = lane->card.folds(),
                                      .pos = weights_.vector(weights_.pos),
                                      .time = weights_.vector(weights_.time),
                                      .pool = pool_->data(),
                                      .blocks = 4 * device().multiprocessors()},
                                     lane->side_stream),
                            "fold");
}

absl::Status Network::Attend(int layer, int rows, bool overlap, Lane* lane) const {
  const CudaWidths& w = weights_.widths;
  const CudaKvShape& shape = pool_->shape();
  auto* pool = static_cast<uint16_t*>(pool_->data()) + 2 * static_cast<size_t>(layer) * shape.kv_size();
  auto* qkv = static_cast<uint16_t*>(lane->qkv);
  const cuda::AttendArgs args{.heads = w.heads,
                              .kv_heads = w.heads,
                              .d_h = w.d_h,
                              .scale = scale_,
                              .total_rows = int64_t{w.channels} * rows,
                              .q = qkv,
                              .q_stride = 3 * w.wide,
                              .self_k = qkv + w.wide,
                              .self_v = qkv + 2 * w.wide,
                              .self_stride = 3 * w.wide,
                              .k_pool = pool,
                              .v_pool = pool + shape.kv_size(),
                              .page_stride = static_cast<int64_t>(shape.block_size()),
                              .pool_pages = pool_->blocks(),
                              .bias = lane->bias,
                              .pages = lane->card.entries(),
                              .items = lane->card.items(),
                              .blocks = device().multiprocessors(),
                              .overlap_previous = overlap,
                              .o = lane->attended,
                              .o_stride = w.wide,
                              .parts = lane->parts,
                              .counters = lane->counters};
  return device().CheckText(cuda::Attend(args, lane->cuda_stream), "attention");
}

absl::Status Network::Project(int l, int rows, Lane* lane, const Lane::Products& p) const {
  const CudaWidths& w = weights_.widths;
  const CudaLayerOffsets& o = weights_.layers[static_cast<size_t>(l)];
  void* const stream = lane->cuda_stream;
  const void* z = lane->z;
  if (p.latent != nullptr) {
    RETURN_IF_ERROR(p.latent->Run(z, weights_.matrix(o.wd), nullptr, lane->inner, lane->workspace_, stream));
    z = lane->inner;
  }
  if (FusedProject(rows)) {
    return device().CheckText(cuda::Project({.rows = rows,
                                             .channels = w.channels,
                                             .in = w.inner,
                                             .out = 3 * w.wide,
                                             .bias_out = w.heads * w.segments,
                                             .z = z,
                                             .w = weights_.matrix(o.wqkv),
                                             .b = weights_.matrix(o.qkv_b),
                                             .w_bias = weights_.matrix(o.wbias),
                                             .y = lane->qkv,
                                             .bias = lane->bias,
                                             .overlap_previous = true},
                                            stream),
                              "projections");
  }
  // The biases of the segments beside Q, K and V: neither waits for the other.
  RETURN_IF_ERROR(Check(cudaEventRecord(lane->fork, lane->cuda_stream), "event"));
  RETURN_IF_ERROR(Check(cudaStreamWaitEvent(lane->side_stream, lane->fork), "event"));
  RETURN_IF_ERROR(
      p.bias->Run(weights_.matrix(o.wbias), z, nullptr, lane->bias, lane->side_workspace, lane->side_stream));
  RETURN_IF_ERROR(Check(cudaEventRecord(lane->join, lane->side_stream), "event"));
  return p.qkv->Run(z, weights_.matrix(o.wqkv), weights_.matrix(o.qkv_b), lane->qkv, lane->workspace_, stream);
}

// After attention, as matrix products and steps between them.
absl::Status Network::FinishByProducts(int l, int rows, Lane* lane, const Lane::Products& p) const {
  const CudaWidths& w = weights_.widths;
  const CudaLayerOffsets& o = weights_.layers[static_cast<size_t>(l)];
  void* const stream = lane->cuda_stream;
  RETURN_IF_ERROR(p.out->Run(lane->attended, weights_.matrix(o.wo), nullptr, lane->x, lane->workspace_, stream));
  CudaRowsArgs between{.rows = rows,
                       .channels = w.channels,
                       .d = w.d,
                       .stride = w.stride,
                       .in_channel_stride = int64_t{rows} * w.stride,
                       .out_channel_stride = int64_t{rows} * w.stride,
                       .in = lane->x,
                       .z = lane->z};
  if (norm_ == Norm::kPost) {
    between.n_g = weights_.vector(o.n1_g), between.n_b = weights_.vector(o.n1_b);
    between.x = lane->x;
  } else {
    between.z_g = weights_.vector(o.n2_g), between.z_b = weights_.vector(o.n2_b);
  }
  RETURN_IF_ERROR(device().CheckText(CudaRows(between, stream), "norm"));
  RETURN_IF_ERROR(
      p.ffn1->Run(lane->z, weights_.matrix(o.w1), weights_.matrix(o.b1), lane->ffn, lane->workspace_, stream));
  return p.ffn2->Run(lane->ffn, weights_.matrix(o.w2), weights_.vector(o.b2), lane->x, lane->workspace_, stream);
}

// After attention, with the next layer's mixing, or what the head takes.
absl::Status Network::Finish(int l, int rows, Lane* lane, const Lane::Products& p) const {
  const CudaWidths& w = weights_.widths;
  const CudaLayerOffsets& o = weights_.layers[static_cast<size_t>(l)];
  cuda::FinishArgs args{.rows = rows,
                        .channels = w.channels,
                        .d = w.d,
                        .wide = w.wide,
                        .ffn = w.ffn,
                        .attended = lane->attended,
                        .w_o = weights_.matrix(o.wo),
                        .w_1 = weights_.matrix(o.w1),
                        .w_2 = weights_.matrix(o.w2),
                        .b_1 = weights_.matrix(o.b1),
                        .b_2 = weights_.vector(o.b2),
                        .n1_g = weights_.vector(o.n1_g),
                        .n1_b = weights_.vector(o.n1_b),
                        .n2_g = weights_.vector(o.n2_g),
                        .n2_b = weights_.vector(o.n2_b),
                        .x = lane->x,
                        .z = lane->z,
                        .inner = lane->ffn,
                        .overlap_previous = true};
  if (!FusedFinish(rows)) {
    args.inner_only = true;
  } else if (l + 1 == w.layers) {
    args.concat = lane->concat;
  } else if (mixing_ && w.channels > 1) {
    const CudaLayerOffsets& next = weights_.layers[static_cast<size_t>(l) + 1];
    args.gate_w = weights_.vector(next.gate_w), args.gate_b = weights_.vector(next.gate_b);
  }
  RETURN_IF_ERROR(device().CheckText(cuda::Finish(args, lane->cuda_stream), "after attention"));
  if (!args.inner_only) return absl::OkStatus();
  return p.ffn2->Run(lane->ffn, weights_.matrix(o.w2), weights_.vector(o.b2), lane->x, lane->workspace_,
                     lane->cuda_stream);
}

absl::Status Network::Layer(int l, int rows, Lane* lane, const Lane::Products& p, const AfterStep& after) const {
  RETURN_IF_ERROR(Project(l, rows, lane, p));
  // The first attention also waits for the folded pages, those of products for the biases beside them.
  const bool waits = l == 0 || !FusedProject(rows);
  if (waits) RETURN_IF_ERROR(Check(cudaStreamWaitEvent(lane->cuda_stream, lane->join), "event"));
  if (after) after("project");
  RETURN_IF_ERROR(Attend(l, rows, !waits && !after, lane));
  if (after) after("attend");
  RETURN_IF_ERROR(finish_fits_ ? Finish(l, rows, lane, p) : FinishByProducts(l, rows, lane, p));
  if (after) after("finish");
  return absl::OkStatus();
}

// What stands between two layers' products. After the layer before: its last norm. Before this layer: mixing, its first
// norm. `l` may be the number of layers.
absl::Status Network::BeforeLayer(int l, int rows, Lane* lane) const {
  const CudaWidths& w = weights_.widths;
  CudaRowsArgs args{.rows = rows,
                    .channels = w.channels,
                    .d = w.d,
                    .stride = w.stride,
                    .in_channel_stride = l == 0 ? 0 : int64_t{rows} * w.stride,
                    .out_channel_stride = int64_t{rows} * w.stride,
                    .in = l == 0 ? lane->card.rows() : lane->x};
  if (l > 0 && norm_ == Norm::kPost) {
    const CudaLayerOffsets& before = weights_.layers[static_cast<size_t>(l) - 1];
    args.n_g = weights_.vector(before.n2_g), args.n_b = weights_.vector(before.n2_b);
  }
  if (l == w.layers) {
    args.concat = lane->concat;
  } else {
    const CudaLayerOffsets& o = weights_.layers[static_cast<size_t>(l)];
    if (mixing_) args.gate_w = weights_.vector(o.gate_w), args.gate_b = weights_.vector(o.gate_b);
    if (norm_ == Norm::kPre) args.z_g = weights_.vector(o.n1_g), args.z_b = weights_.vector(o.n1_b);
    args.x = lane->x, args.z = lane->z;
  }
  return device().CheckText(CudaRows(args, lane->cuda_stream), "rows");
}

absl::Status Network::Head(int rows, Lane* lane, const Lane::Products& products) const {
  const CudaWidths& w = weights_.widths;
  if (head_fits_) {
    return device().CheckText(cuda::Head({.rows = rows,
                                          .in = w.channels * w.stride,
                                          .hidden = w.hidden,
                                          .tasks = w.tasks,
                                          .concat = lane->concat,
                                          .w_1 = weights_.matrix(weights_.head_w1),
                                          .b_1 = weights_.vector(weights_.head_b1),
                                          .w_2 = weights_.vector(weights_.head_w2),
                                          .b_2 = weights_.vector(weights_.head_b2),
                                          .logits = lane->logits_on_card(),
                                          .overlap_previous = true},
                                         lane->cuda_stream),
                              "head");
  }
  RETURN_IF_ERROR(products.head->Run(lane->concat, weights_.matrix(weights_.head_w1), weights_.vector(weights_.head_b1),
                                     lane->hidden, lane->workspace_, lane->cuda_stream));
  return device().CheckText(CudaHead({.rows = rows,
                                      .hidden = w.hidden,
                                      .stride = w.hidden,
                                      .tasks = w.tasks,
                                      .hidden_rows = lane->hidden,
                                      .w = weights_.vector(weights_.head_w2),
                                      .b = weights_.vector(weights_.head_b2),
                                      .logits = lane->logits_on_card()},
                                     lane->cuda_stream),
                            "head");
}

absl::Status Network::Enqueue(int rows, Lane* lane, const Lane::Products& products, const AfterStep& after) const {
  const int layers = weights_.widths.layers;
  RETURN_IF_ERROR(Check(cudaEventRecord(lane->fork, lane->cuda_stream), "event"));
  RETURN_IF_ERROR(Check(cudaStreamWaitEvent(lane->side_stream, lane->fork), "event"));
  RETURN_IF_ERROR(Fold(lane));
  RETURN_IF_ERROR(Check(cudaEventRecord(lane->join, lane->side_stream), "event"));
  for (int l = 0; l <= layers; ++l) {
    if (l == 0 || !FusedFinish(rows)) {
      RETURN_IF_ERROR(BeforeLayer(l, rows, lane));
      if (after) after("rows");
    }
    if (l < layers) RETURN_IF_ERROR(Layer(l, rows, lane, products, after));
  }
  RETURN_IF_ERROR(Head(rows, lane, products));
  if (after) after("head");
  return absl::OkStatus();
}

absl::Status Network::Capture(int rows, Lane* lane, Lane::Program* program) const {
  RETURN_IF_ERROR(Check(cudaStreamBeginCapture(lane->cuda_stream, cudaStreamCaptureModeThreadLocal), "capture"));
  const absl::Status enqueued = Enqueue(rows, lane, *program->products);
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(lane->cuda_stream, &graph);
  RETURN_IF_ERROR(enqueued);
  RETURN_IF_ERROR(Check(ended, "capture"));
  const cudaError_t made = cudaGraphInstantiate(&program->graph, graph, 0);
  static_cast<void>(cudaGraphDestroy(graph));
  return Check(made, "graph");
}

absl::Status Network::Prepare(std::span<const CudaSegment> segments, int rows, CudaLane* base) const {
  Lane* const lane = static_cast<Lane*>(base);
  RETURN_IF_ERROR(device().Select());
  lane->last_rows = Bucket(rows);
  return Upload(segments, lane->last_rows, lane);
}

absl::Status Network::Run(CudaLane* base) const {
  Lane* const lane = static_cast<Lane*>(base);
  const int rows = lane->last_rows;
  if (const auto found = lane->programs.find(rows); found != lane->programs.end()) {
    return Check(cudaGraphLaunch(found->second.graph, lane->cuda_stream), "scoring");
  }
  auto products = ProductsFor(rows);
  if (!products.ok()) return products.status();
  Lane::Program program{.products = *std::move(products)};
  // The first pass runs as it is: kernels are loaded by their first launch, which a capture does not allow.
  RETURN_IF_ERROR(Enqueue(rows, lane, *program.products));
  RETURN_IF_ERROR(Check(cudaStreamSynchronize(lane->cuda_stream), "scoring"));
  RETURN_IF_ERROR(Capture(rows, lane, &program));
  lane->programs.emplace(rows, std::move(program));
  return absl::OkStatus();
}

absl::Status Network::RunBySteps(CudaLane* base, const AfterStep& after) const {
  Lane* const lane = static_cast<Lane*>(base);
  return Enqueue(lane->last_rows, lane, *lane->programs.at(lane->last_rows).products, after);
}

absl::Status Network::Warm(int rows_max, CudaLane* lane) const {
  for (int rows : kBuckets) {
    if (rows <= rows_max) RETURN_IF_ERROR(Score({}, rows, lane));
  }
  return absl::OkStatus();
}

absl::Status Network::Score(std::span<const CudaSegment> segments, int rows, CudaLane* base) const {
  RETURN_IF_ERROR(Prepare(segments, rows, base));
  RETURN_IF_ERROR(Run(base));
  return Wait(base);
}

absl::Status Network::Wait(CudaLane* lane) const {
  return Check(cudaStreamSynchronize(static_cast<Lane*>(lane)->cuda_stream), "scoring");
}

}  // namespace

int CudaNetwork::Bucket(int rows) { return *std::lower_bound(std::begin(kBuckets), std::end(kBuckets) - 1, rows); }

absl::StatusOr<CudaKvShape> CudaNetwork::KvShape(const Config& config) {
  auto widths = CudaWidthsOf(config);
  if (!widths.ok()) return widths.status();
  return CudaKvShape{.layers = widths->layers, .heads = widths->heads, .d_h = widths->d_h};
}

absl::StatusOr<std::unique_ptr<CudaNetwork>> CudaNetwork::Load(const Config& config, const TensorMap& tensors,
                                                               std::shared_ptr<CudaGemmLibrary> gemms,
                                                               std::shared_ptr<CudaPagePool> pool) {
  auto weights = LoadCudaWeights(config, tensors, &pool->device());
  if (!weights.ok()) return weights.status();
  return std::make_unique<Network>(std::move(gemms), std::move(pool), *std::move(weights), config.norm,
                                   config.target_mixing);
}

}  // namespace backstory::grab
