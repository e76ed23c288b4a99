#include "serving/engine/recommend/recommender.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <unordered_set>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "models/glass/beam_search.h"
#include "serving/engine/item_reader.h"

namespace backstory {
namespace {

size_t Size(int64_t value) { return static_cast<size_t>(value); }

// Beams to follow: the parameter's, else the model's.
size_t BeamOf(const PreparedRank& request) {
  const size_t beam = Size(request.parameters.Int("recommend_beam"));
  return beam == 0 ? Size(request.served->generative->config().beam) : beam;
}

// Decides item by item, and counts why one is left out.
class Filter {
 public:
  Filter(const RecommendSpec& spec, const PreparedRank& request, const GenerativeState& state, const Catalog* catalog,
         Filtered* counts)
      : spec_(spec),
        state_(state),
        exclude_seen_(request.parameters.Bool("recommend_exclude_seen")),
        excluded_(spec.exclude_items.begin(), spec.exclude_items.end()),
        items_(catalog, request.query.ns),
        counts_(counts) {}

  bool Keep(uint64_t item_id) {
    if (excluded_.contains(item_id)) return ++counts_->excluded, false;
    if (exclude_seen_ && state_.Seen(item_id)) return ++counts_->seen, false;
    if (spec_.include_categories.empty()) return true;
    const Item* item = items_.Find(item_id);
    if (item != nullptr) {
      for (const std::string& category : item->categories) {
        const auto& wanted = spec_.include_categories;
        if (std::find(wanted.begin(), wanted.end(), category) != wanted.end()) return true;
      }
    }
    return ++counts_->category, false;
  }

  // What to name when nothing is left.
  std::string Describe() const {
    std::string text;
    const auto add = [&text](std::string_view name, uint64_t count) {
      if (count > 0) absl::StrAppend(&text, text.empty() ? "" : ", ", std::string(name), " ", count);
    };
    add("exclude_item_ids", counts_->excluded);
    add(spec_.exclude_seen.has_value() ? "exclude_seen" : "parameter recommend_exclude_seen", counts_->seen);
    add("include_categories", counts_->category);
    add("per_sid_max", counts_->per_sid);
    return text;
  }

 private:
  const RecommendSpec& spec_;
  const GenerativeState& state_;
  const bool exclude_seen_;
  const absl::flat_hash_set<uint64_t> excluded_;
  ItemReader items_;
  Filtered* const counts_;
};

// Behaviours that the search found for an item, largest share first.
void Explain(const GenerativeState& state, const glass::Sid& sid, const glass::Steering& steering, size_t top,
             Recommended* item) {
  std::map<uint32_t, float> share;  // of one occurrence of a token
  for (size_t i = 0; i < steering.tokens.size(); ++i) {
    share[steering.tokens[i].token] = steering.mass[i] / static_cast<float>(steering.tokens[i].count);
  }
  for (const glass::Behaviour& behaviour : state.history().Bucket(sid[0])) {
    ExplainedEvent event{0, behaviour.event_id, behaviour.time_us, state.catalogue().item_id(behaviour.row), 0};
    for (const uint32_t token : state.catalogue().Tokens(behaviour.row)) {
      if (const auto found = share.find(token); found != share.end()) event.mass += found->second;
    }
    item->explanation.push_back(event);
  }
  std::stable_sort(item->explanation.begin(), item->explanation.end(),
                   [](const ExplainedEvent& a, const ExplainedEvent& b) { return a.mass > b.mass; });
  if (item->explanation.size() > top) item->explanation.resize(top);
  item->search_gate = steering.gate;
}

// Nothing is an error, too little is not; both say why.
absl::Status Judge(const RecommendSpec& spec, const std::string& filtered, RecommendReply* reply) {
  if (reply->items.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("no item is left: of the items of ", reply->sids_found, " semantic IDs (beam ", reply->beam,
                     ") the filters took all: ", filtered, "; loosen them or raise beam"));
  }
  if (reply->items.size() >= spec.count) return absl::OkStatus();
  reply->partial = true;
  reply->partial_reason =
      absl::StrCat(reply->items.size(), " of ", spec.count, " items: beam ", reply->beam, " found ", reply->sids_found,
                   " semantic IDs", filtered.empty() ? "" : ", filters took: ", filtered);
  return absl::OkStatus();
}

// ln sigmoid(logit), without overflow.
double LogProbability(double logit) {
  return logit > 0 ? -std::log1p(std::exp(-logit)) : logit - std::log1p(std::exp(logit));
}

}  // namespace

struct Recommender::Found {
  std::vector<glass::Beam> beams;
  std::vector<glass::Steering> steering;  // [beams], if asked for
};

void Recommender::AddTiming(PreparedRank* request, std::string_view stage, int64_t start_us) const {
  const int64_t duration_us = clock_->MonotonicMicros() - start_us;
  request->reply.timings.push_back({std::string(stage), duration_us});
  metrics_
      ->GetHistogram("backstory_stage_seconds", "Time of one request in one stage", LatencyBoundsSeconds(),
                     {{"stage", std::string(stage)}})
      ->Observe(static_cast<double>(duration_us) * 1e-6);
}

absl::StatusOr<Recommender::Found> Recommender::Search(const GenerativeState& state, size_t beam,
                                                       const PreparedRank& request) const {
  Found found;
  const glass::UserSearch search{.user = &state.encoded(),
                                 .catalogue = &state.catalogue(),
                                 .history = &state.history(),
                                 .beam = beam,
                                 .steering = request.query.explain_top > 0 ? &found.steering : nullptr};
  const absl::Status status = request.served->generative->searcher().Search({&search, 1}, {&found.beams, 1});
  if (!status.ok()) return status;
  for (const glass::Beam& one : found.beams) {
    if (std::isfinite(one.score)) continue;
    return absl::InternalError(absl::StrCat("model ", request.served->name, " version ", request.served->version,
                                            " gave a log-probability that is not finite"));
  }
  return found;
}

absl::StatusOr<StatePin> Recommender::Acquire(PreparedRank* request) const {
  const RankQuery& query = request->query;
  const GenerativeModel& model = *request->served->generative;
  const int64_t start_us = clock_->MonotonicMicros();
  GenerativeStateRequest wanted;
  wanted.user = {query.ns, query.units.user};
  wanted.model = &model;
  wanted.events_max = request->parameters.Int("state_events_max");
  wanted.parameter_hash = request->parameters.StateHash();
  wanted.view_us = std::min(query.now_us, query.as_of.event_time_us);
  wanted.known_by_us = query.as_of.known_by_us;
  absl::StatusOr<GenerativeStateAnswer> answer = states_->Acquire(wanted);
  if (!answer.ok()) return answer.status();
  const GenerativeState& state = *answer->pin.generative();
  RankReply& common = request->reply;
  common.request_id = query.request_id;
  common.model = request->served->name;
  common.version = request->served->version;
  common.state_id = model.state_id();
  common.now_us = query.now_us;
  common.seq = state.head().seq;
  common.epoch = state.head().epoch;
  common.unknown_user = state.head().seq == 0;
  common.cache = answer->report;
  common.rows_visible = {state.history().short_window().size(), state.history().long_size()};
  common.timings.push_back({"store", answer->store_us});
  AddTiming(request, "state", start_us + answer->store_us);
  return std::move(answer->pin);
}

absl::Status Recommender::Generate(const RecommendSpec& spec, size_t wanted, PreparedRank* request,
                                   RecommendReply* reply) const {
  const absl::StatusOr<StatePin> pin = Acquire(request);
  if (!pin.ok()) return pin.status();
  const GenerativeState& state = *pin->generative();
  int64_t start_us = clock_->MonotonicMicros();
  reply->beam = BeamOf(*request);
  const absl::StatusOr<Found> found = Search(state, reply->beam, *request);
  if (!found.ok()) return found.status();
  reply->sids_found = found->beams.size();
  AddTiming(request, "decode", start_us);
  start_us = clock_->MonotonicMicros();
  const glass::Catalogue& catalogue = state.catalogue();
  Filter filter(spec, *request, state, catalog_, &reply->filtered);
  glass::RecommendOptions options;
  options.count = wanted;
  if (const size_t most = Size(request->parameters.Int("recommend_per_sid_max")); most > 0) options.per_sid_max = most;
  options.keep = [&](uint32_t row) { return filter.Keep(catalogue.item_id(row)); };
  options.beyond_per_sid = &reply->filtered.per_sid;
  for (const glass::RecommendedItem& one : glass::ItemsOf(catalogue, found->beams, options)) {
    const glass::Sid& sid = catalogue.sid(one.row);
    const float score = found->beams[one.beam].score;
    Recommended item{catalogue.item_id(one.row), {sid.begin(), sid.end()}, score, score, {}, {}, 0};
    if (request->query.explain_top > 0) {
      Explain(state, sid, found->steering[one.beam], Size(request->query.explain_top), &item);
    }
    reply->items.push_back(std::move(item));
  }
  AddTiming(request, "items", start_us);
  return Judge(spec, filter.Describe(), reply);
}

absl::Status Recommender::RankItems(const RecommendSpec& spec, std::shared_ptr<const ServedModel> rank_with,
                                    const PreparedRank& request, RecommendReply* reply) const {
  PreparedRank rank;
  rank.query = request.query;
  rank.query.explain_top = 0;
  for (const Recommended& item : reply->items) rank.query.candidates.item_ids.push_back(item.item_id);
  rank.served = std::move(rank_with);
  rank.parameters = request.parameters;
  reply->rank_model = rank.served->name;
  reply->rank_version = rank.served->version;
  const auto prepared = ranker_->Prepare(&rank, /*may_wait=*/true);
  if (!prepared.ok()) return prepared.status();
  PreparedRank* const ranks[] = {&rank};
  absl::Status status = ranker_->Score(ranks);
  if (status.ok()) status = rank.status;
  if (!status.ok()) return status;
  const double blend = request.parameters.Real("recommend_blend");
  for (size_t i = 0; i < reply->items.size(); ++i) {
    Recommended& item = reply->items[i];
    for (const ScoreColumn& column : rank.reply.scores) {
      item.ranked.push_back({column.task, column.calibrated[i], column.raw_logit[i]});
    }
    const double ranked = LogProbability(static_cast<double>(item.ranked.front().raw_logit));
    item.score = static_cast<float>((1 - blend) * static_cast<double>(item.log_probability) + blend * ranked);
  }
  std::stable_sort(reply->items.begin(), reply->items.end(),
                   [](const Recommended& a, const Recommended& b) { return a.score > b.score; });
  if (reply->items.size() > spec.count) reply->items.resize(spec.count);
  return absl::OkStatus();
}

absl::Status Recommender::Recommend(const RecommendSpec& spec, std::shared_ptr<const ServedModel> rank_with,
                                    PreparedRank* request, RecommendReply* reply) const {
  size_t wanted = spec.count;
  if (rank_with != nullptr) {
    const size_t asked = spec.rank.has_value() ? spec.rank->candidates : 0;
    wanted = std::max(wanted, asked > 0 ? asked : Size(request->parameters.Int("recommend_rank_candidates")));
  }
  absl::Status status = Generate(spec, wanted, request, reply);
  if (!status.ok() || rank_with == nullptr) return status;
  const int64_t start_us = clock_->MonotonicMicros();
  status = RankItems(spec, std::move(rank_with), *request, reply);
  AddTiming(request, "rank", start_us);
  return status;
}

absl::Status Recommender::Probe(const GenerativeModel& model) const {
  const glass::Catalogue& catalogue = *model.loaded().catalogue;
  const glass::History nobody(&catalogue);
  const auto beams = glass::EncodeAndSearch(model.searcher(), catalogue, nobody, Size(model.config().beam));
  if (!beams.ok()) return beams.status();
  for (const glass::Beam& beam : *beams) {
    if (!std::isfinite(beam.score)) return absl::InternalError("a log-probability is not finite");
  }
  return absl::OkStatus();
}

}  // namespace backstory
