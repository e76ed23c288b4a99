#include "serving/engine/batch/batch_run.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "serving/engine/shed.h"

namespace backstory {
namespace {

// Bounds memory, and what is still waited for after a stop.
constexpr size_t kCandidatesInFlightMax = 65'536;
// Users whose first request builds a state while others are scored. More would push states out of a small cache.
constexpr size_t kUsersAhead = 8;
constexpr auto kDegradedWait = std::chrono::milliseconds(20);

bool Degraded(const RankReply& reply) {
  return std::any_of(reply.parameters.begin(), reply.parameters.end(), [](const EffectiveParameter& parameter) {
    return parameter.source == SourceName(ParameterSource::kDegrade);
  });
}

}  // namespace

UserOrder UserOrderFor(const TokenizerConfig& config) {
  return config.open_rows == OpenRows::kAsKnown && config.label_window_us > 0 ? UserOrder::kOneByOne
                                                                              : UserOrder::kNewestFirst;
}

BatchRun::BatchRun(Engine* engine, const BatchRows& rows, const BatchPlan& plan, const BatchOptions& options,
                   UserOrder order, BatchScores* scores)
    : engine_(engine), rows_(rows), plan_(plan), options_(options), order_(order), scores_(scores) {}

std::span<const uint32_t> BatchRun::Members(uint32_t request) const {
  const BatchRange range = plan_.requests[request];
  return std::span(plan_.order).subspan(range.begin, range.size());
}

absl::Status BatchRun::Run(std::stop_token stop, const BatchScorer::Progress& progress) {
  const std::stop_callback on_stop(stop, [this] {
    std::lock_guard lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
  });
  bool give_up = false;
  while (true) {
    const Time now = std::chrono::steady_clock::now();
    while (!give_up && (IssueAgain(now) || IssueNext())) {
    }
    if (in_flight_ == 0 && (give_up || again_.empty())) break;
    std::vector<Flight> finished, refused;
    {
      std::unique_lock lock(mutex_);
      // A thread that is woken for every answer takes time from those that score: it sleeps until a quarter is back.
      wake_at_ = std::max<size_t>(1, in_flight_ / 4);
      const auto back = [this] { return finished_.size() + refused_.size() >= wake_at_ || stopped_ || !failure_.ok(); };
      if (again_.empty() || give_up || in_flight_ >= options_.in_flight_max) {
        changed_.wait(lock, [&] { return back() && !(give_up && finished_.empty() && refused_.empty()); });
      } else {
        changed_.wait_until(lock, again_.front().not_before, back);
      }
      finished.swap(finished_);
      refused.swap(refused_);
      give_up = stopped_ || !failure_.ok();
    }
    Collect(std::move(finished), std::move(refused), std::chrono::steady_clock::now());
    if (progress) progress(rows_done_);
  }
  std::lock_guard lock(mutex_);
  if (!failure_.ok()) return failure_;
  if (give_up) return absl::CancelledError("stopped by the caller");
  scores_->bad.insert(scores_->bad.end(), bad_.begin(), bad_.end());
  return absl::OkStatus();
}

// Takes back what the engine has answered.
void BatchRun::Collect(std::vector<Flight> finished, std::vector<Flight> refused, Time now) {
  for (const Flight& flight : finished) {
    --in_flight_;
    candidates_in_flight_ -= Candidates(flight);
    rows_done_ += Candidates(flight);
    --flight.lane->in_flight;
    if (flight.lane->done()) lanes_.erase(flight.lane);
  }
  for (Flight& flight : refused) {
    --in_flight_;
    candidates_in_flight_ -= Candidates(flight);
    flight.not_before = std::max(flight.not_before, now);
    again_.push_back(flight);
  }
  std::sort(again_.begin(), again_.end(), [](const Flight& a, const Flight& b) { return a.not_before < b.not_before; });
}

bool BatchRun::CanIssue(const Lane& lane) const {
  if (lane.issued == lane.requests.size()) return false;
  const bool alone = order_ == UserOrder::kOneByOne || lane.issued == 1;  // 1: the one that builds the state is out
  return !alone || lane.in_flight == 0;
}

uint32_t BatchRun::NextRequest(const Lane& lane) const {
  if (order_ == UserOrder::kOneByOne) return lane.requests.begin + lane.issued;
  return lane.issued == 0 ? lane.requests.end - 1 : lane.requests.begin + lane.issued - 1;
}

// The first user that can go on, else the next user. False if nothing more may be in flight now.
bool BatchRun::IssueNext() {
  if (in_flight_ >= options_.in_flight_max || !again_.empty()) return false;
  {
    std::lock_guard lock(mutex_);
    if (!refused_.empty()) return false;  // the engine has enough: what it refused goes first
  }
  const size_t ahead_max = order_ == UserOrder::kOneByOne ? options_.in_flight_max : kUsersAhead;
  size_t ahead = 0;
  LaneIt lane = lanes_.begin();
  for (; lane != lanes_.end() && !CanIssue(*lane); ++lane) ahead += lane->issued < lane->requests.size() ? 1 : 0;
  if (lane == lanes_.end()) {
    if (next_user_ == plan_.users.size() || ahead >= ahead_max) return false;
    lane = lanes_.insert(lanes_.end(), Lane{plan_.users[next_user_++]});
  }
  const Flight flight{lane, NextRequest(*lane), {}};
  if (in_flight_ > 0 && candidates_in_flight_ + Candidates(flight) > kCandidatesInFlightMax) return false;
  ++lane->issued;
  ++lane->in_flight;
  Issue(flight);
  return true;
}

bool BatchRun::IssueAgain(Time now) {
  if (again_.empty() || again_.front().not_before > now || in_flight_ >= options_.in_flight_max) return false;
  const Flight flight = again_.front();
  again_.pop_front();
  Issue(flight);
  return true;
}

void BatchRun::Issue(Flight flight) {
  ++in_flight_;
  candidates_in_flight_ += Candidates(flight);
  RankQuery query = BatchQuery(rows_, Members(flight.request), options_);
  query.model = options_.model;
  engine_->Rank(std::move(query),
                [this, flight](absl::StatusOr<RankReply> reply) { Answered(flight, std::move(reply)); });
}

// On a thread of the engine, or on the calling one if the engine refused at once.
void BatchRun::Answered(Flight flight, absl::StatusOr<RankReply> reply) {
  bool again = false;
  absl::Status failure;
  if (!reply.ok()) {
    failure = Refused(flight, reply.status(), &again);
    const int64_t wait_ms = RetryPushbackMs(reply.status()).value_or(0);
    if (again) flight.not_before = std::chrono::steady_clock::now() + std::chrono::milliseconds(wait_ms);
  } else if (Degraded(*reply)) {
    again = true;
    flight.not_before = std::chrono::steady_clock::now() + kDegradedWait;
  } else {
    Fill(flight.request, *reply);
  }
  std::lock_guard lock(mutex_);
  failure_.Update(failure);
  (again ? refused_ : finished_).push_back(flight);
  // Under the lock: once the last answer is in, the run may be gone.
  if (finished_.size() + refused_.size() >= wake_at_ || !failure_.ok()) changed_.notify_all();
}

// What a refusal means: ask again, or rows that cannot be scored, or (the status) the end of the run.
absl::Status BatchRun::Refused(const Flight& flight, const absl::Status& status, bool* again) {
  const bool shed = RetryPushbackMs(status).has_value();
  if (shed && (absl::IsResourceExhausted(status) || (absl::IsUnavailable(status) && !engine_->Stats().draining))) {
    *again = true;
    return absl::OkStatus();
  }
  // A slot that the store does not own concerns one user, a version that is gone concerns all.
  const bool of_user = absl::IsFailedPrecondition(status) && engine_->models().Resolve(options_.model).ok();
  if (!of_user && !absl::IsInvalidArgument(status)) return status;
  std::lock_guard lock(mutex_);
  for (const uint32_t row : Members(flight.request)) {
    bad_.push_back({row, of_user ? std::string(kBatchUser) : "", std::string(status.message())});
    scores_->flags[row] = kRowBad;
  }
  return absl::OkStatus();
}

void BatchRun::Fill(uint32_t request, const RankReply& reply) {
  const std::span<const uint32_t> members = Members(request);
  const uint64_t visible = std::accumulate(reply.rows_visible.begin(), reply.rows_visible.end(), uint64_t{0});
  for (size_t i = 0; i < members.size(); ++i) {
    for (size_t task = 0; task < scores_->scores.size(); ++task) {
      scores_->scores[task].calibrated[members[i]] = reply.scores[task].calibrated[i];
      scores_->scores[task].raw_logit[members[i]] = reply.scores[task].raw_logit[i];
    }
    scores_->rows_visible[members[i]] = static_cast<uint32_t>(visible);
    scores_->flags[members[i]] = reply.unknown_user ? kUnknownUser : 0;
  }
  for (const uint32_t item : reply.unknown_items) scores_->flags[members[item]] |= kUnknownItem;
}

}  // namespace backstory
