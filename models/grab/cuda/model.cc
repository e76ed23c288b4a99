#include "models/grab/cuda/model.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "models/grab/cuda/card_kv.h"
#include "models/grab/cuda/history_tokens.h"
#include "models/grab/cuda/lanes.h"
#include "models/grab/cuda/network.h"
#include "models/grab/cuda/prefills.h"
#include "models/grab/cuda/tokens.h"
#include "models/grab/key_runs.h"
#include "models/grab/segment_check.h"
#include "models/grab/token_net.h"

namespace backstory::grab {
namespace {

constexpr size_t kTokenRows = 64;  // of one tokenizer task
constexpr int kRowAlign = 4;       // of a segment's first row in a launch

// Candidates [first, first + count) of a segment.
struct Slice {
  const ScoreSegment* segment;
  size_t first, count;
};

class CudaModel final : public Model {
 public:
  CudaModel(std::unique_ptr<Model> cpu, TokenNet partial, TokenNet full, ThreadPool* pool,
            std::shared_ptr<CudaRuntime> runtime)
      : cpu_(std::move(cpu)),
        partial_(std::move(partial)),
        full_(std::move(full)),
        pool_(pool),
        runtime_(std::move(runtime)),
        windows_{config().window_rows, WindowUs(config().window_sec)},
        buckets_(config().n_time) {}

  absl::Status LoadOnCard(const TensorMap& tensors);

  const Config& config() const override { return cpu_->config(); }
  const std::string& state_id() const override { return cpu_->state_id(); }
  size_t parameter_bytes() const override { return cpu_->parameter_bytes(); }
  // 16,384 rows are some 20 milliseconds of a card; without one, the CPU's K/V are made in steps.
  bool ExtendsAtOnce() const override { return network_ != nullptr && runtime_->device().health().ok(); }
  // One more than pass at once: while the answers of one go out, the next is there to take its lane.
  int lanes() const override { return network_ == nullptr ? 0 : 1 + std::max(1, runtime_->options().lanes); }
  std::unique_ptr<UserKv> NewState() const override {
    auto host = cpu_->NewState();
    return std::make_unique<CudaUserKv>(pages_, tenant_,
                                        std::unique_ptr<CpuUserKv>(static_cast<CpuUserKv*>(host.release())));
  }
  absl::Status Extend(std::span<const ChannelRows> tokens, UserKv* kv) const override;
  absl::Status Score(std::span<const ScoreSegment> segments) const override;

 private:
  absl::Status ScoreOnCard(std::span<const Slice> slices) const;
  absl::Status Launch(std::span<const Slice> slices, TwoLanes* lane, std::vector<int32_t>* scratch) const;
  absl::Status FindPages(const Slice& slice, CudaSegment* out, std::vector<int32_t>* scratch) const;
  // Whether this version's card holds, or may hold, the user's pages.
  bool OnCard(const CudaUserKv* kv) const { return network_ != nullptr && kv->pool() == pages_.get(); }
  // `computed` becomes whether rows were computed.
  absl::StatusOr<CudaPagePool::Pin> Onboard(const CudaUserKv& kv, bool* computed) const;
  absl::Status OnboardAll(std::span<const Slice> slices, std::vector<CudaPagePool::Pin>* pins) const;
  absl::StatusOr<ComputeCost> MeasureCompute(CudaPagePool* pages) const;
  absl::Status Compute(std::span<const CudaHistory> channels, std::span<const ChannelRows> tokens) const;
  absl::Status Tokenize(std::span<const Slice> slices, std::span<const CudaSegment> at, int rows,
                        TwoLanes* lanes) const;
  absl::Status ScoreOnCpu(std::span<const ScoreSegment> segments) const;

  const std::unique_ptr<Model> cpu_;
  const TokenNet partial_, full_;
  ThreadPool* const pool_;
  const std::shared_ptr<CudaRuntime> runtime_;
  const Windows windows_;
  const TimeBuckets buckets_;
  std::shared_ptr<CudaPagePool> pages_;
  std::shared_ptr<CudaTenant> tenant_;
  std::unique_ptr<CudaNetwork> network_;  // null: the card could not take this version
  std::unique_ptr<CudaPrefills> prefills_;
  std::unique_ptr<CudaTokens> tokens_;  // null: the CPU makes candidates' token rows
  mutable Lanes lanes_;
};

absl::Status CudaModel::LoadOnCard(const TensorMap& tensors) {
  auto shape = CudaNetwork::KvShape(config());
  if (!shape.ok()) return shape.status();
  auto pages = runtime_->PoolFor(*shape);
  if (!pages.ok()) return pages.status();
  auto network = CudaNetwork::Load(config(), tensors, runtime_->gemms(), *pages);
  if (!network.ok()) return network.status();
  constexpr size_t kTableShare = 4;  // of what is free
  const int stride = (*network)->widths().stride;
  const auto tables =
      std::make_shared<CudaTokenTables>(runtime_->shared_device(), runtime_->device().FreeBytes() / kTableShare);
  const auto by_cpu = [&](const char* whose, const absl::Status& why) {
    if (why.ok()) return;
    runtime_->Log(absl::StrCat("model ", config().name, ": the CPU makes its ", whose,
                               " token rows: ", std::string(why.message())));
  };
  auto tokens = CudaTokens::Load(CudaTokens::View::kCandidates, config(), tensors, stride, tables,
                                 runtime_->shared_device(), runtime_->gemms());
  by_cpu("candidates'", tokens.status());
  auto history =
      CudaHistoryTokens::Load(config(), tensors, stride, tables, runtime_->shared_device(), runtime_->gemms());
  by_cpu("histories'", history.status());
  CudaTokens* const made_tokens = tokens.ok() ? tokens->get() : nullptr;
  std::vector<TwoLanes> made;  // nothing is kept of a load that fails on its way
  for (int i = 0; i < std::max(1, runtime_->options().lanes); ++i) {
    TwoLanes lanes;
    auto lane = (*network)->NewLane();
    if (!lane.ok()) return lane.status();
    if (absl::Status s = (*network)->Warm(runtime_->options().warm_rows, lane->get()); !s.ok()) return s;
    lanes.network = *std::move(lane);
    if (made_tokens != nullptr) {
      auto token_lane = made_tokens->NewLane(CudaNetwork::kRowsMax);
      if (!token_lane.ok()) return token_lane.status();
      lanes.tokens = *std::move(token_lane);
    }
    made.push_back(std::move(lanes));
  }
  auto prefills = CudaPrefills::Create(config(), &(*network)->weights(), runtime_->gemms(), *pages,
                                       history.ok() ? *std::move(history) : nullptr);
  if (!prefills.ok()) return prefills.status();
  by_cpu("histories'", (*prefills)->no_tokens());
  prefills_ = *std::move(prefills);
  auto compute = MeasureCompute(pages->get());
  if (!compute.ok()) return compute.status();
  tenant_ = runtime_->TenantFor(state_id(), *shape);
  if (tenant_->blocks == 0) tenant_->compute = *compute;
  if (tokens.ok()) tokens_ = *std::move(tokens);
  for (TwoLanes& lanes : made) lanes_.Add(std::move(lanes));
  pages_ = *std::move(pages);
  network_ = *std::move(network);
  return absl::OkStatus();
}

// Puts packed rows of d floats `stride` floats apart, from the last one on, and fills up with zeroes.
void Spread(size_t rows, size_t d, size_t stride, float* x) {
  for (size_t r = rows; stride != d && r-- > 0;) {
    std::memmove(x + r * stride, x + r * d, d * sizeof(float));
    std::fill_n(x + r * stride + d, stride - d, 0.0f);
  }
}

// `rows` events of one id a field, a minute apart.
ChannelRows MadeUpRows(const Config& config, size_t rows) {
  ChannelRows made;
  SparseColumn column;
  column.ids.resize(rows);
  for (size_t r = 0; r < rows; ++r) column.offsets.push_back(static_cast<uint32_t>(r + 1));
  made.tokens.sparse.assign(config.tokenizer.partial.size(), column);
  made.tokens.rows = rows;
  made.action.resize(rows);
  for (size_t r = 0; r < rows; ++r) {
    made.time_us.push_back(static_cast<int64_t>(r) * 60'000'000);
    made.tie.push_back(static_cast<int64_t>(r));
    made.event_id.push_back(r);
  }
  made.closed = rows;
  return made;
}

absl::Status CudaModel::Extend(std::span<const ChannelRows> tokens, UserKv* base) const {
  if (absl::Status status = CheckChannels(config(), tokens.size()); !status.ok()) return status;
  auto* kv = static_cast<CudaUserKv*>(base);
  for (size_t c = 0; c < tokens.size(); ++c) {
    if (absl::Status s = CheckHistory(config(), partial_, tokens[c], c, kv->facts(c)); !s.ok()) return s;
  }
  kv->Append(tokens);
  // Ahead of the score that will need it. If the card cannot, that score decides what to do.
  const bool lost = !runtime_->device().health().ok();
  if (!OnCard(kv) || (lost && runtime_->options().fall_back)) return kv->OnHost(*cpu_).status();
  bool computed = false;
  const absl::Status status = Onboard(*kv, &computed).status();
  return runtime_->options().fall_back ? absl::OkStatus() : status;
}

absl::StatusOr<CudaPagePool::Pin> CudaModel::Onboard(const CudaUserKv& kv, bool* computed) const {
  for (size_t c = 0; c < kv.tokens().size(); ++c) {  // before anybody is pushed out for it
    if (kv.facts(c).rows() > CudaPrefill::kRowsMax) {
      return absl::ResourceExhaustedError(
          absl::StrCat(kv.facts(c).rows(), " rows of channel ", c, ", the card takes ", CudaPrefill::kRowsMax));
    }
  }
  return pages_->Onboard(kv, [this, computed](const CudaUserKv& user, std::span<const size_t> first) {
    *computed = true;
    std::vector<CudaHistory> channels;
    for (size_t c = 0; c < first.size(); ++c) {
      channels.push_back({.first = first[c],
                          .rows = user.facts(c).rows(),
                          .blocks = user.blocks(c),
                          .facts = user.facts(c).index(),
                          .action = user.tokens()[c].action});
    }
    return Compute(channels, user.tokens());
  });
}

absl::Status CudaModel::OnboardAll(std::span<const Slice> slices, std::vector<CudaPagePool::Pin>* pins) const {
  std::vector<const CudaUserKv*> users;
  for (const Slice& slice : slices) {
    if (slice.segment->kv != nullptr) users.push_back(static_cast<const CudaUserKv*>(slice.segment->kv));
  }
  pins->resize(users.size());
  std::mutex mutex;
  absl::Status status;  // guarded by mutex: the first error
  const auto onboard = [&](size_t u) {
    bool computed = false;
    auto pin = Onboard(*users[u], &computed);
    if (pin.ok()) (*pins)[u] = *std::move(pin);
    std::lock_guard lock(mutex);
    status.Update(pin.status());
    return computed;
  };
  // Where one had to be computed, more of them may: side by side. Users that are there are not worth waking a thread.
  size_t first = 0;
  bool computed = false;
  while (first < users.size() && !computed && status.ok()) computed = onboard(first++);
  if (status.ok()) ParallelFor(pool_, users.size() - first, [&](size_t i) { onboard(first + i); });
  return status;
}

absl::Status CudaModel::Compute(std::span<const CudaHistory> channels, std::span<const ChannelRows> tokens) const {
  return prefills_->Append(channels, tokens, [&](size_t c, size_t from, size_t count, size_t stride, float* out) {
    const size_t d = static_cast<size_t>(config().d);
    const TokenNet::UserPart no_user{.product = std::vector<float>(static_cast<size_t>(config().gate_mlp_hidden) + d)};
    ParallelFor(pool_, (count + kTokenRows - 1) / kTokenRows, [&](size_t i) {
      const size_t at = i * kTokenRows, rows = std::min(kTokenRows, count - at);
      partial_.Run(no_user, tokens[c].tokens, from + at, rows, out + at * stride);
      Spread(rows, d, stride, out + at * stride);
    });
  });
}

// Times whole histories of made-up tokens, tokenizer included, as long as the pool has room or nearly so: users of
// versions that serve are not pushed out for it in numbers.
absl::StatusOr<ComputeCost> CudaModel::MeasureCompute(CudaPagePool* pages) const {
  constexpr size_t kLengths[] = {128, 512, 2048, 8192};
  constexpr int kRepeats = 3;
  constexpr uint64_t kShare = 64;
  const size_t count = static_cast<size_t>(config().channels());
  const CudaPagePool::Stats pool = pages->GetStats();
  const size_t pages_max = std::max(pool.blocks - pool.blocks_used, pool.blocks / kShare);
  std::vector<ComputeSample> samples;
  for (const size_t rows : kLengths) {
    if (rows / kPageRows * count > pages_max) break;
    auto host = cpu_->NewState();
    CudaUserKv kv(nullptr, nullptr, std::unique_ptr<CpuUserKv>(static_cast<CpuUserKv*>(host.release())));
    kv.Append(std::vector<ChannelRows>(count, MadeUpRows(config(), rows)));
    auto blocks = pages->Take(rows / kPageRows * count);
    if (!blocks.ok()) break;
    std::vector<CudaHistory> channels;
    for (size_t c = 0; c < count; ++c) {
      channels.push_back({.rows = rows,
                          .blocks = std::span(*blocks).subspan(c * (rows / kPageRows), rows / kPageRows),
                          .facts = kv.facts(c).index(),
                          .action = kv.tokens()[c].action});
    }
    double best = 0;
    absl::Status status;
    for (int i = 0; i < kRepeats && status.ok(); ++i) {
      const auto begin = std::chrono::steady_clock::now();
      status = Compute(channels, kv.tokens());
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      if (i == 0 || seconds < best) best = seconds;
    }
    pages->Free(*blocks);
    if (!status.ok()) return status;
    samples.push_back({WorkOf(std::vector<size_t>(count), std::vector<size_t>(count, rows)), best});
  }
  // Not even a page was free: whatever it costs, pages that are there are worth copying.
  return samples.empty() ? ComputeCost{.a = 1} : FitCompute(samples);
}

absl::Status CudaModel::ScoreOnCpu(std::span<const ScoreSegment> segments) const {
  std::vector<ScoreSegment> on_host(segments.begin(), segments.end());
  for (ScoreSegment& segment : on_host) {
    if (segment.kv == nullptr) continue;
    auto host = static_cast<const CudaUserKv*>(segment.kv)->OnHost(*cpu_);
    if (!host.ok()) return host.status();
    segment.kv = *host;
  }
  return cpu_->Score(on_host);
}

absl::Status CudaModel::Score(std::span<const ScoreSegment> segments) const {
  for (size_t s = 0; s < segments.size(); ++s) {
    if (absl::Status status = CheckSegment(config(), full_, segments[s], s); !status.ok()) return status;
  }
  std::vector<ScoreSegment> on_cpu;
  std::vector<Slice> slices;
  const bool card = network_ != nullptr && runtime_->device().health().ok();
  if (!card && !runtime_->options().fall_back) {
    const absl::Status health = runtime_->device().health();
    return health.ok() ? absl::UnavailableError("this version is not on the card") : health;
  }
  for (const ScoreSegment& segment : segments) {
    const auto* kv = static_cast<const CudaUserKv*>(segment.kv);
    if (!card || segment.explain_top > 0 || (kv != nullptr && !OnCard(kv))) {
      if (!card || segment.explain_top == 0) ++runtime_->counters.fallbacks;  // explanations are the CPU's anyway
      on_cpu.push_back(segment);
      continue;
    }
    const size_t rows = segment.candidates->item.rows;
    for (size_t first = 0; first < rows; first += CudaNetwork::kRowsMax) {
      slices.push_back({&segment, first, std::min<size_t>(CudaNetwork::kRowsMax, rows - first)});
    }
  }
  for (size_t first = 0, last = 0; first < slices.size(); first = last) {
    size_t rows = 0;
    for (; last < slices.size(); ++last) {
      const size_t more = (slices[last].count + kRowAlign - 1) / kRowAlign * kRowAlign;
      if (rows > 0 && rows + more > CudaNetwork::kRowsMax) break;
      rows += more;
    }
    const auto part = std::span(slices).subspan(first, last - first);
    const absl::Status status = ScoreOnCard(part);
    if (status.ok()) continue;
    if (!runtime_->options().fall_back) return status;
    for (const Slice& slice : part) {
      if (!on_cpu.empty() && on_cpu.back().candidates == slice.segment->candidates &&
          on_cpu.back().logits == slice.segment->logits) {
        continue;
      }
      on_cpu.push_back(*slice.segment);
      ++runtime_->counters.fallbacks;
    }
  }
  const absl::Status status = on_cpu.empty() ? absl::OkStatus() : ScoreOnCpu(on_cpu);
  if (runtime_->options().scored) runtime_->options().scored(*runtime_);
  return status;
}

absl::Status CudaModel::ScoreOnCard(std::span<const Slice> slices) const {
  TwoLanes lane = lanes_.Take();
  std::vector<int32_t> scratch;
  absl::Status status = Launch(slices, &lane, &scratch);
  // What was enqueued before a failure must not read what the lane's next user writes.
  if (!status.ok()) static_cast<void>(network_->Wait(lane.network.get()));
  pages_->Free(scratch);
  lanes_.Give(std::move(lane));
  // More pages than one launch takes: halves may fit.
  if (absl::IsResourceExhausted(status) && slices.size() > 1) {
    const size_t half = slices.size() / 2;
    status = ScoreOnCard(slices.first(half));
    if (status.ok()) status = ScoreOnCard(slices.subspan(half));
  }
  return status;
}

absl::Status CudaModel::FindPages(const Slice& slice, CudaSegment* out, std::vector<int32_t>* scratch) const {
  const ScoreSegment& segment = *slice.segment;
  out->channels.resize(static_cast<size_t>(config().channels()));
  if (segment.kv == nullptr) return absl::OkStatus();
  const auto& kv = *static_cast<const CudaUserKv*>(segment.kv);
  for (size_t c = 0; c < out->channels.size(); ++c) {
    const ChannelState& channel = kv.facts(c);
    const size_t visible = segment.visible_rows[c];
    const size_t first = segment.first_row.empty() ? 0 : std::min(segment.first_row[c], visible);
    const std::vector<KeyRun> runs = CandidateRuns(channel.index(), first, visible, segment.candidates->now_us,
                                                   segment.candidates->tie, windows_, buckets_);
    VisiblePages pages = FindVisiblePages(runs, channel.rows(), static_cast<size_t>(config().n_pos));
    CudaChannelPages& to = out->channels[c];
    const std::span<const int32_t> blocks = kv.blocks(c);
    for (cuda::PageEntry entry : pages.direct) {
      entry.page = blocks[static_cast<size_t>(entry.page)];
      to.entries.push_back(entry);
    }
    constexpr size_t kRows = cuda::kPageRows;
    const size_t folded = pages.folded.size(), fold_pages = pages.pages() - pages.direct.size();
    auto taken = pages_->Take(fold_pages);
    if (!taken.ok()) return taken.status();
    scratch->insert(scratch->end(), taken->begin(), taken->end());
    for (size_t i = 0; i < fold_pages * kRows; ++i) {
      CudaFoldRow row{.from = -1, .to = (*taken)[i / kRows] * int32_t{kRows} + static_cast<int32_t>(i % kRows)};
      if (i < folded) {
        const VisiblePages::Fold& fold = pages.folded[i];
        row.from = blocks[fold.row / kRows] * int32_t{kRows} + static_cast<int32_t>(fold.row % kRows);
        row.position = fold.position, row.time = fold.time, row.channel = static_cast<int32_t>(c);
      }
      to.folds.push_back(row);
    }
    for (size_t p = 0; p < fold_pages; ++p) {
      to.entries.push_back({.page = (*taken)[p], .valid = static_cast<int16_t>(std::min(kRows, folded - p * kRows))});
    }
  }
  return absl::OkStatus();
}

absl::Status CudaModel::Tokenize(std::span<const Slice> slices, std::span<const CudaSegment> at, int rows,
                                 TwoLanes* lanes) const {
  std::vector<TokenNet::UserPart> users;
  for (const Slice& slice : slices) users.push_back(full_.RunUser(slice.segment->candidates->user));
  CudaLane* const lane = lanes->network.get();
  lane->rows_are_on_card = false;
  if (lanes->tokens != nullptr) {
    std::vector<CudaTokenSlice> on_card;
    for (size_t s = 0; s < slices.size(); ++s) {
      on_card.push_back({.item = &slices[s].segment->candidates->item,
                         .first = slices[s].first,
                         .count = slices[s].count,
                         .row = static_cast<size_t>(at[s].first_row),
                         .user = &users[s]});
    }
    const absl::Status status = tokens_->Run(on_card, CudaNetwork::Bucket(rows), lanes->tokens.get(),
                                             lane->rows_on_card(), lane->workspace(), lane->stream());
    lane->rows_are_on_card = status.ok();
    if (status.ok() || !absl::IsResourceExhausted(status)) return status;
  }
  struct Piece {
    size_t slice, first, count;
  };
  std::vector<Piece> pieces;
  for (size_t s = 0; s < slices.size(); ++s) {
    for (size_t r = 0; r < slices[s].count; r += kTokenRows) {
      pieces.push_back({s, r, std::min(kTokenRows, slices[s].count - r)});
    }
  }
  const size_t d = static_cast<size_t>(config().d), stride = static_cast<size_t>(network_->widths().stride);
  ParallelFor(pool_, pieces.size(), [&](size_t i) {
    const Piece& piece = pieces[i];
    const Slice& slice = slices[piece.slice];
    float* out = lane->rows() + (static_cast<size_t>(at[piece.slice].first_row) + piece.first) * stride;
    full_.Run(users[piece.slice], slice.segment->candidates->item, slice.first + piece.first, piece.count, out);
    Spread(piece.count, d, stride, out);
  });
  return absl::OkStatus();
}

absl::Status CudaModel::Launch(std::span<const Slice> slices, TwoLanes* lanes, std::vector<int32_t>* scratch) const {
  CudaLane* const lane = lanes->network.get();
  if (absl::Status status = runtime_->device().Select(); !status.ok()) return status;
  std::vector<CudaSegment> segments;
  int rows = 0;
  for (const Slice& slice : slices) {
    segments.push_back({.first_row = rows, .rows = static_cast<int>(slice.count)});
    rows += (segments.back().rows + kRowAlign - 1) / kRowAlign * kRowAlign;
  }
  std::vector<CudaPagePool::Pin> pins;
  if (absl::Status status = OnboardAll(slices, &pins); !status.ok()) return status;
  // The card begins with the tokens while the CPU looks for pages.
  if (absl::Status status = Tokenize(slices, segments, rows, lanes); !status.ok()) return status;
  for (size_t s = 0; s < slices.size(); ++s) {
    if (absl::Status status = FindPages(slices[s], &segments[s], scratch); !status.ok()) return status;
  }
  // Pages on their way from the host are waited for by the card, not by this thread.
  for (const CudaPagePool::Pin& pin : pins) {
    if (absl::Status status = pin.Before(static_cast<CUstream_st*>(lane->stream())); !status.ok()) return status;
  }
  if (absl::Status status = network_->Score(segments, rows, lane); !status.ok()) return status;
  ++runtime_->counters.launches;
  runtime_->counters.rows += static_cast<uint64_t>(rows);
  const size_t tasks = config().tasks.size();
  for (size_t s = 0; s < slices.size(); ++s) {
    const float* from = lane->logits() + static_cast<size_t>(segments[s].first_row) * tasks;
    const size_t count = slices[s].count * tasks;
    if (!std::all_of(from, from + count, [](float x) { return std::isfinite(x); })) {
      return absl::InternalError("a score from the card is not finite");
    }
    std::copy_n(from, count, slices[s].segment->logits + slices[s].first * tasks);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> CreateCudaModel(const Config& config, const TensorMap& tensors, ThreadPool* pool,
                                                       Dtype precision, std::shared_ptr<CudaRuntime> runtime) {
  auto cpu = CreateModel(config, tensors, pool, precision);
  if (!cpu.ok()) return cpu.status();
  auto partial = TokenNet::LoadPartial(config, tensors);
  if (!partial.ok()) return partial.status();
  auto full = TokenNet::LoadFull(config, tensors);
  if (!full.ok()) return full.status();
  auto model = std::make_unique<CudaModel>(*std::move(cpu), *std::move(partial), *std::move(full), pool, runtime);
  if (absl::Status status = model->LoadOnCard(tensors); !status.ok()) {
    if (!runtime->options().fall_back) return status;
    runtime->Log(
        absl::StrCat("model ", config.name, ": not on the card, the CPU scores it: ", std::string(status.message())));
  }
  return model;
}

}  // namespace backstory::grab
