#include "serving/engine/ranker.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "features/candidate_slices.h"
#include "serving/engine/item_reader.h"

namespace backstory {
namespace {

// One model call's view of one request: its candidates in slices, and where their results go.
struct Slices {
  std::vector<CandidateTokens> tokens;                                    // empty if all candidates go in one slice
  std::vector<float> logits;                                              // [candidates, tasks]
  std::vector<std::vector<std::vector<grab::Attribution>>> attributions;  // [slice][candidate][..]
};

float Logistic(float logit) { return 1.0f / (1.0f + std::exp(-logit)); }

void AddSegments(PreparedRank* rank, Slices* slices, std::vector<grab::ScoreSegment>* segments) {
  const size_t candidates = rank->tokens.item.rows;
  const size_t tasks = rank->served->model->config().tasks.size();
  const bool whole = rank->served->model->lanes() > 0;
  const size_t step =
      whole ? std::max<size_t>(1, candidates) : static_cast<size_t>(rank->parameters.Int("micro_batch_candidates"));
  slices->logits.resize(candidates * tasks);
  slices->attributions.resize((candidates + step - 1) / step);
  if (candidates > step) {
    for (size_t begin = 0; begin < candidates; begin += step) {
      slices->tokens.push_back(SliceCandidates(rank->tokens, begin, std::min(candidates, begin + step)));
    }
  }
  for (size_t s = 0; s < slices->attributions.size(); ++s) {
    grab::ScoreSegment segment;
    segment.kv = rank->pin.state() == nullptr ? nullptr : &rank->pin.state()->kv();
    segment.visible_rows = rank->view.visible_rows;
    segment.first_row = rank->first_row;
    segment.candidates = slices->tokens.empty() ? &rank->tokens : &slices->tokens[s];
    segment.logits = slices->logits.data() + s * step * tasks;
    segment.explain_top = rank->query.explain_top;
    segment.attributions = rank->query.explain_top > 0 ? &slices->attributions[s] : nullptr;
    segments->push_back(segment);
  }
}

absl::Status FillScores(const Slices& slices, PreparedRank* rank) {
  const grab::Config& config = rank->served->model->config();
  const ServedCalibration& calibration = rank->served->calibration;
  const size_t tasks = config.tasks.size();
  const size_t candidates = rank->tokens.item.rows;
  for (size_t t = 0; t < tasks; ++t) {
    ScoreColumn column{config.tasks[t], {}, {}};
    column.calibrated.reserve(candidates);
    column.raw_logit.reserve(candidates);
    for (size_t i = 0; i < candidates; ++i) {
      const float logit = slices.logits[i * tasks + t];
      const float probability = calibration.probability
                                    ? calibration.probability(rank->query.scene, static_cast<int>(t), logit)
                                    : Logistic(logit);
      if (!std::isfinite(logit) || !std::isfinite(probability)) {
        return absl::InternalError(absl::StrCat("model ", rank->served->name, " version ", rank->served->version,
                                                " gave a score that is not finite (task ", config.tasks[t],
                                                ", candidate ", i, ")"));
      }
      column.raw_logit.push_back(logit);
      column.calibrated.push_back(probability);
    }
    rank->reply.scores.push_back(std::move(column));
  }
  return absl::OkStatus();
}

void FillExplanations(const Slices& slices, PreparedRank* rank) {
  if (rank->query.explain_top == 0) return;
  const UserState* state = rank->pin.state();
  for (const auto& slice : slices.attributions) {
    for (const std::vector<grab::Attribution>& attributions : slice) {
      std::vector<ExplainedEvent> events;
      for (const grab::Attribution& a : attributions) {
        const HistoryRow* row = state == nullptr ? nullptr : state->RowOf(a.channel, a.row);
        if (row != nullptr) events.push_back({a.channel, row->event_id, row->time_us, row->item_id, a.mass});
      }
      std::stable_sort(events.begin(), events.end(),
                       [](const ExplainedEvent& a, const ExplainedEvent& b) { return a.mass > b.mass; });
      rank->reply.explanations.push_back(std::move(events));
    }
  }
  rank->reply.explanations.resize(rank->tokens.item.rows);
}

void SliceColumn(const SparseColumn& from, size_t begin, size_t end, SparseColumn* to) {
  const uint32_t base = from.offsets[begin];
  to->offsets.clear();
  for (size_t i = begin; i <= end; ++i) to->offsets.push_back(from.offsets[i] - base);
  to->ids.assign(from.ids.begin() + base, from.ids.begin() + from.offsets[end]);
}

}  // namespace

CandidateTokens SliceCandidates(const CandidateTokens& tokens, size_t begin, size_t end) {
  assert(begin <= end && end <= tokens.item.rows);
  CandidateTokens slice;
  slice.user = tokens.user;
  slice.now_us = tokens.now_us;
  slice.tie = tokens.tie;
  slice.item.rows = end - begin;
  slice.item.sparse.resize(tokens.item.sparse.size());
  for (size_t f = 0; f < tokens.item.sparse.size(); ++f) {
    SliceColumn(tokens.item.sparse[f], begin, end, &slice.item.sparse[f]);
  }
  const size_t width = tokens.item.rows == 0 ? 0 : tokens.item.dense.size() / tokens.item.rows;
  slice.item.dense.assign(tokens.item.dense.begin() + static_cast<ptrdiff_t>(begin * width),
                          tokens.item.dense.begin() + static_cast<ptrdiff_t>(end * width));
  return slice;
}

Ranker::Ranker(HistoryStore* store, Catalog* catalog, UserStateProvider* states, ThreadPool* pool, Clock* clock,
               Metrics* metrics)
    : store_(store), catalog_(catalog), states_(states), pool_(pool), clock_(clock), metrics_(metrics) {}

void Ranker::AddTiming(PreparedRank* rank, std::string_view stage, int64_t duration_us) const {
  rank->reply.timings.push_back({std::string(stage), duration_us});
  metrics_
      ->GetHistogram("backstory_stage_seconds", "Time of one request in one stage", LatencyBoundsSeconds(),
                     {{"stage", std::string(stage)}})
      ->Observe(static_cast<double>(duration_us) * 1e-6);
}

absl::StatusOr<Ranker::Prepared> Ranker::Prepare(PreparedRank* rank, bool may_wait, const BetweenSteps& between) const {
  StateRequest request;
  request.may_wait = may_wait;
  request.between = between;
  return PrepareWith(std::move(request), rank);
}

absl::StatusOr<Ranker::Prepared> Ranker::PrepareQuickly(PreparedRank* rank, size_t quick_events) const {
  StateRequest request;
  request.may_wait = false;
  request.quick_events = quick_events;
  return PrepareWith(std::move(request), rank);
}

absl::StatusOr<Ranker::Prepared> Ranker::PrepareWith(StateRequest request, PreparedRank* rank) const {
  const RankQuery& query = rank->query;
  const int64_t start_us = clock_->MonotonicMicros();
  request.user = {query.ns, query.units.user};
  request.served = rank->served.get();
  request.events_max = rank->parameters.Int("state_events_max");
  request.parameter_hash = rank->parameters.StateHash();
  request.view_us = std::min(query.now_us, query.as_of.event_time_us);
  request.known_by_us = query.as_of.known_by_us;
  absl::StatusOr<StateAnswer> answer = states_->Acquire(request);
  if (!answer.ok()) return answer.status();
  if (answer->busy) return answer->long_work ? Prepared::kLong : Prepared::kBusy;

  RankReply& reply = rank->reply;
  reply.request_id = query.request_id;
  reply.model = rank->served->name;
  reply.version = rank->served->version;
  reply.state_id = rank->served->model->state_id();
  reply.now_us = query.now_us;
  reply.seq = answer->head.seq;
  reply.epoch = answer->head.epoch;
  reply.unknown_user = answer->head.seq == 0;
  reply.cache = std::move(answer->report);
  rank->pin = std::move(answer->pin);
  rank->view = std::move(answer->view);

  const size_t history_rows = static_cast<size_t>(rank->parameters.Int("history_rows"));
  for (size_t visible : rank->view.visible_rows) {
    rank->first_row.push_back(visible > history_rows ? visible - history_rows : 0);
    reply.rows_visible.push_back(visible - rank->first_row.back());
  }
  const int64_t state_done_us = clock_->MonotonicMicros();
  AddTiming(rank, "store", answer->store_us);
  AddTiming(rank, "state", state_done_us - start_us - answer->store_us);
  if (const absl::Status status = Tokenize(rank); !status.ok()) {
    rank->pin.Release();
    return status;
  }
  rank->prepared_us = clock_->MonotonicMicros();
  AddTiming(rank, "features", rank->prepared_us - state_done_us);
  return Prepared::kReady;
}

absl::Status Ranker::Tokenize(PreparedRank* rank) const {
  const RankQuery& query = rank->query;
  const TokenizerConfig& config = rank->served->model->config().tokenizer;
  const int64_t view_us = std::min(query.now_us, query.as_of.event_time_us);
  ItemReader items(catalog_, query.ns);
  CandidateInput input;
  input.user = query.units.user;
  input.scene = query.scene;
  input.now_us = query.now_us;
  if (query.request_id != 0) input.tie = TieKey(query.request_id, query.now_us);
  UserSummary summary;
  if (rank->pin.state() != nullptr) summary = rank->pin.state()->SummaryAt(view_us, input.tie, &items);
  input.summary = &summary;
  input.request = &query.features;
  input.candidates = &query.candidates;
  // In slices that several threads take: a request waits a good deal longer for memory than it computes here.
  constexpr size_t kSliceLeast = 256, kSlicesMost = 4;
  struct Part {
    CandidateSlice slice;
    std::vector<uint32_t> unknown;
    absl::Status status;
  };
  const std::span<const uint64_t> ids = query.candidates.item_ids;
  const size_t slice = std::max(kSliceLeast, (ids.size() + kSlicesMost - 1) / kSlicesMost);
  std::vector<Part> parts(std::max<size_t>(1, (ids.size() + slice - 1) / slice));
  ParallelFor(parts.size() > 1 ? pool_ : nullptr, parts.size(), [&](size_t p) {
    const size_t first = p * slice, count = std::min(slice, ids.size() - first);
    std::vector<const Item*> found(count);
    std::vector<RateCounts> counts(count);
    const Catalog::Pin pin = catalog_->FindMany(query.ns, ids.subspan(first, count), found);
    if (WantsCounts(config)) {
      parts[p].status = store_->ManyCountsBefore(
          query.ns, ids.subspan(first, count), view_us, config.stats_granularity_us,
          [&](size_t i, const ItemCounts& outcomes) { counts[i] = CountsByRule(outcomes, config.label); });
    }
    CandidateInput mine = input;
    mine.found_items = found;
    mine.found_counts = counts;
    parts[p].slice = TokenizeSlice(mine, config, first, count);
    for (size_t i = 0; i < count; ++i) {
      if (found[i] == nullptr) parts[p].unknown.push_back(static_cast<uint32_t>(first + i));
    }
  });
  std::vector<CandidateSlice> slices;
  absl::Status status;
  for (Part& part : parts) {
    status.Update(part.status);
    slices.push_back(std::move(part.slice));
    rank->reply.unknown_items.insert(rank->reply.unknown_items.end(), part.unknown.begin(), part.unknown.end());
  }
  rank->tokens = JoinSlices(input, slices, &rank->reply.features);
  return status;
}

absl::Status Ranker::Probe(std::shared_ptr<const ServedModel> served) const {
  constexpr uint64_t kProbes = 64;
  PreparedRank rank;
  rank.query.ns = "default";
  rank.query.units.user = "probe";
  rank.query.now_us = clock_->WallMicros();
  for (uint64_t id = 1; id <= kProbes; ++id) rank.query.candidates.item_ids.push_back(id);
  const size_t channels = served->model->config().tokenizer.channels.size();
  rank.served = std::move(served);
  rank.view.visible_rows.resize(channels);
  rank.first_row.resize(channels);
  if (const absl::Status status = Tokenize(&rank); !status.ok()) return status;
  PreparedRank* const ranks[] = {&rank};
  if (const absl::Status status = Score(ranks); !status.ok()) return status;
  return rank.status;
}

absl::Status Ranker::Score(std::span<PreparedRank* const> ranks) const {
  if (ranks.empty()) return absl::OkStatus();
  const int64_t start_us = clock_->MonotonicMicros();
  std::vector<Slices> slices(ranks.size());
  std::vector<grab::ScoreSegment> segments;
  size_t candidates = 0;
  for (size_t i = 0; i < ranks.size(); ++i) {
    assert(ranks[i]->served == ranks[0]->served);
    AddSegments(ranks[i], &slices[i], &segments);
    candidates += ranks[i]->tokens.item.rows;
  }
  const absl::Status status = ranks[0]->served->model->Score(segments);
  const int64_t duration_us = clock_->MonotonicMicros() - start_us;
  metrics_->GetCounter("backstory_rank_batches_total", "Calls of the model; requests / batches is the mean batch")
      ->Add();
  metrics_->GetCounter("backstory_rank_candidates_total", "Candidates scored")->Add(static_cast<double>(candidates));
  for (size_t i = 0; i < ranks.size(); ++i) {
    if (status.ok()) {
      ranks[i]->status = FillScores(slices[i], ranks[i]);
      FillExplanations(slices[i], ranks[i]);
      if (ranks[i]->prepared_us > 0) AddTiming(ranks[i], "batch", start_us - ranks[i]->prepared_us);
      AddTiming(ranks[i], "score", duration_us);
    }
    ranks[i]->pin.Release();
  }
  return status;
}

}  // namespace backstory
