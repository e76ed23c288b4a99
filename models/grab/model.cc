#include "models/grab/model.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "models/grab/segment_check.h"
#include "models/grab/stack.h"
#include "models/grab/state_id.h"
#include "models/grab/token_net.h"

namespace backstory::grab {
namespace {

class GrabModel final : public Model {
 public:
  GrabModel(Stack stack, TokenNet partial, TokenNet full, std::string state_id, size_t table_bytes, ThreadPool* pool)
      : stack_(std::move(stack)),
        partial_(std::move(partial)),
        full_(std::move(full)),
        state_id_(std::move(state_id)),
        table_bytes_(table_bytes),
        pool_(pool) {}

  const Config& config() const override { return stack_.config(); }
  const std::string& state_id() const override { return state_id_; }
  size_t parameter_bytes() const override { return stack_.Bytes() + partial_.Bytes() + full_.Bytes() + table_bytes_; }

  std::unique_ptr<UserKv> NewState() const override {
    return std::make_unique<CpuUserKv>(stack_.page_shape(), config().channels(), config().layers);
  }
  absl::Status Extend(std::span<const ChannelRows> tokens, UserKv* kv) const override;
  absl::Status Score(std::span<const ScoreSegment> segments) const override;

 private:
  void AppendChunk(std::span<const ChannelRows> tokens, std::span<const size_t> first, std::span<const size_t> count,
                   CpuUserKv* kv) const;

  Stack stack_;
  TokenNet partial_, full_;
  std::string state_id_;
  size_t table_bytes_;
  ThreadPool* pool_;
};

// Rows of one pass through the layers: bounds working memory to a few MiB whatever the history's length.
constexpr size_t kChunkRows = 4096;
// Rows of one tokenizer task.
constexpr size_t kTokenRows = 64;

absl::Status GrabModel::Extend(std::span<const ChannelRows> tokens, UserKv* kv) const {
  const size_t channels = static_cast<size_t>(config().channels());
  if (absl::Status status = CheckChannels(config(), tokens.size()); !status.ok()) return status;
  auto* state = static_cast<CpuUserKv*>(kv);
  for (size_t c = 0; c < channels; ++c) {
    if (absl::Status s = CheckHistory(config(), partial_, tokens[c], c, state->channel(c)); !s.ok()) return s;
  }
  for (bool more = true; more;) {
    more = false;
    std::vector<size_t> first(channels), count(channels);
    for (size_t c = 0; c < channels; ++c) {
      first[c] = state->channel(c).rows();
      count[c] = std::min(kChunkRows, tokens[c].time_us.size() - first[c]);
      more |= first[c] + count[c] < tokens[c].time_us.size();
    }
    AppendChunk(tokens, first, count, state);
  }
  return absl::OkStatus();
}

void GrabModel::AppendChunk(std::span<const ChannelRows> tokens, std::span<const size_t> first,
                            std::span<const size_t> count, CpuUserKv* kv) const {
  struct Piece {
    size_t channel, row, rows;
  };
  const size_t d = static_cast<size_t>(config().d);
  std::vector<AlignedFloats> x;
  std::vector<HistoryRows> rows;
  std::vector<Piece> pieces;
  for (size_t c = 0; c < tokens.size(); ++c) {
    x.emplace_back(count[c] * d);
    const ChannelRows& t = tokens[c];
    rows.push_back({.x = x[c].data(),
                    .facts = {.time_us = std::span(t.time_us).subspan(first[c], count[c]),
                              .tie = std::span(t.tie).subspan(first[c], count[c]),
                              .event_id = std::span(t.event_id).subspan(first[c], count[c])},
                    .action = std::span(t.action).subspan(first[c], count[c])});
    for (size_t r = 0; r < count[c]; r += kTokenRows) pieces.push_back({c, r, std::min(kTokenRows, count[c] - r)});
  }
  const TokenNet::UserPart no_user{.product = std::vector<float>(static_cast<size_t>(config().gate_mlp_hidden) + d)};
  ParallelFor(pool_, pieces.size(), [&](size_t i) {
    const Piece& piece = pieces[i];
    partial_.Run(no_user, tokens[piece.channel].tokens, first[piece.channel] + piece.row, piece.rows,
                 x[piece.channel].data() + piece.row * d);
  });
  stack_.Append(rows, false, pool_, kv);
}

absl::Status GrabModel::Score(std::span<const ScoreSegment> segments) const {
  struct Work {
    CandidateRows rows;
    Stack::Visibility visibility;
    TokenNet::UserPart user;
    AlignedFloats x;
  };
  struct Piece {
    size_t segment, first, count;
  };
  for (size_t s = 0; s < segments.size(); ++s) {
    if (absl::Status status = CheckSegment(config(), full_, segments[s], s); !status.ok()) return status;
  }
  const size_t d = static_cast<size_t>(config().d);
  std::vector<Work> work(segments.size());
  std::vector<Piece> pieces;
  for (size_t s = 0; s < segments.size(); ++s) {
    const ScoreSegment& segment = segments[s];
    const size_t m = segment.candidates->item.rows;
    Work& w = work[s];
    w.x = AlignedFloats(m * d);
    if (segment.explain_top > 0) segment.attributions->assign(m, {});
    w.rows = {.x = w.x.data(),
              .rows = m,
              .now_us = segment.candidates->now_us,
              .tie = segment.candidates->tie,
              .kv = static_cast<const CpuUserKv*>(segment.kv),
              .visible_rows = segment.visible_rows,
              .first_row = segment.first_row,
              .logits = segment.logits,
              .explain_top = segment.explain_top,
              .attributions = segment.explain_top > 0 ? segment.attributions->data() : nullptr};
    w.visibility = stack_.VisibilityOf(w.rows);
    w.user = full_.RunUser(segment.candidates->user);
    const size_t block = stack_.BlockRows(m, pool_);
    for (size_t first = 0; first < m; first += block) pieces.push_back({s, first, std::min(block, m - first)});
  }
  ParallelFor(pool_, pieces.size(), [&](size_t i) {
    const Piece& piece = pieces[i];
    Work& w = work[piece.segment];
    full_.Run(w.user, segments[piece.segment].candidates->item, piece.first, piece.count, w.x.data() + piece.first * d);
    stack_.ScoreBlock(w.rows, w.visibility, piece.first, piece.count);
  });
  return absl::OkStatus();
}

size_t TableBytes(const Config& config, const TensorMap& tensors) {
  std::set<std::string> names;
  for (const auto* view : {&config.tokenizer.partial, &config.tokenizer.full}) {
    for (const SparseFieldConfig& field : *view) names.insert(absl::StrCat("tok.table.", field.table));
  }
  size_t bytes = 0;
  for (const std::string& name : names) {
    if (const TensorView* table = tensors.Find(name)) bytes += table->size * sizeof(float);
  }
  return bytes;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> CreateModel(const Config& config, const TensorMap& tensors, ThreadPool* pool,
                                                   Dtype precision) {
  if (absl::Status status = Validate(config); !status.ok()) return status;
  auto stack = Stack::Load(config, tensors, precision);
  if (!stack.ok()) return stack.status();
  auto partial = TokenNet::LoadPartial(config, tensors);
  if (!partial.ok()) return partial.status();
  auto full = TokenNet::LoadFull(config, tensors, precision);
  if (!full.ok()) return full.status();
  return std::make_unique<GrabModel>(std::move(*stack), std::move(*partial), std::move(*full),
                                     StateId(config, tensors, precision), TableBytes(config, tensors), pool);
}

}  // namespace backstory::grab
