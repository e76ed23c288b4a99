#include "serving/engine/user_state_provider.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace backstory {
namespace {

// A view further ahead of the clock than events may be (store/history_store.h) leaves the cached state alone, so that
// one caller's strange clock does not cost the next one a rebuild.
constexpr int64_t kViewAheadMaxUs = int64_t{24} * 3600 * 1'000'000;

// Adds the time until its end to a total.
class Stopwatch {
 public:
  Stopwatch(const Clock* clock, int64_t* total_us)
      : clock_(clock), total_us_(total_us), start_us_(clock->MonotonicMicros()) {}
  ~Stopwatch() { *total_us_ += clock_->MonotonicMicros() - start_us_; }

 private:
  const Clock* const clock_;
  int64_t* const total_us_;
  const int64_t start_us_;
};

}  // namespace

UserStateProvider::UserStateProvider(HistoryStore* store, Catalog* catalog, UserStateCache* cache, Clock* clock,
                                     Metrics* metrics)
    : store_(store),
      catalog_(catalog),
      cache_(cache),
      clock_(clock),
      metrics_(metrics),
      times_(store),
      rows_reused_(metrics->GetCounter("backstory_state_rows_total", "K/V rows by where they came from",
                                       {{"origin", "reused"}})),
      rows_computed_(metrics->GetCounter("backstory_state_rows_total", "K/V rows by where they came from",
                                         {{"origin", "computed"}})),
      hash_mismatches_(metrics->GetCounter("backstory_state_hash_mismatch_total",
                                           "Cached states whose rolling hash no longer fitted and that were rebuilt")),
      evictions_(
          metrics->GetCounter("backstory_cache_evictions_total", "User states evicted to stay within the budget")) {}

std::string UserStateProvider::StateKey(const ServedModel& served, uint64_t parameter_hash) {
  return absl::StrCat(served.model->state_id(), ":", absl::Hex(parameter_hash, absl::kZeroPad16));
}

// Where a state begins follows from the events before its view: nullopt if only the store could tell and the request
// does not wait.
absl::StatusOr<std::optional<std::string>> UserStateProvider::CacheKey(const StateRequest& request,
                                                                       const UserHead& head) {
  std::string key = StateKey(*request.served, request.parameter_hash);
  if (static_cast<int64_t>(head.events) <= request.events_max) return key;
  UserHead seen = head;
  if (request.view_us <= head.newest_us) {
    const auto before = times_.CountBefore(request.user, head, request.view_us, request.may_wait);
    if (!before.ok()) return before.status();
    if (!before->has_value()) return std::nullopt;
    seen.events = **before;
  }
  const int64_t anchor = AnchorOf(seen, request.events_max);
  if (anchor > head.first_index) absl::StrAppend(&key, "@", anchor);
  return key;
}

absl::StatusOr<StateAnswer> UserStateProvider::Acquire(const StateRequest& request) {
  StateAnswer answer;
  absl::StatusOr<UserHead> head;
  {
    Stopwatch watch(clock_, &answer.store_us);
    head = store_->Head(request.user);
  }
  if (!head.ok()) return head.status();
  answer.head = *head;
  if (head->events == 0) {
    answer.view.visible_rows.resize(request.served->model->config().tokenizer.channels.size());
    Count(answer);
    return answer;
  }
  const bool uncached =
      request.known_by_us != AsOf::kAnyIngestTime || request.view_us > clock_->WallMicros() + kViewAheadMaxUs;
  if (!uncached) {
    absl::StatusOr<std::optional<std::string>> key;
    {
      Stopwatch watch(clock_, &answer.store_us);
      key = CacheKey(request, *head);
    }
    if (!key.ok()) return key.status();
    if (!key->has_value()) {
      answer.busy = answer.long_work = true;
      return answer;
    }
    const auto entry = cache_->Get(request.user, **key);
    if (TryCached(request, entry, &answer)) {
      Count(answer);
      return answer;
    }
    StateLease lease = request.may_wait ? StateLease::Acquire(entry) : StateLease::TryAcquire(entry);
    if (!lease) {
      answer.busy = true;
      return answer;
    }
    absl::Status status = BringUpToDate(request, &lease.state(), &answer);
    if (!status.ok()) lease.state() = nullptr;
    evictions_->Add(static_cast<double>(
        cache_->SetBytes(request.user, entry, lease.state() == nullptr ? 0 : lease.state()->Bytes())));
    if (!status.ok() || answer.busy) return status.ok() ? absl::StatusOr<StateAnswer>(std::move(answer)) : status;
    answer.head = lease.state()->head();
    if (auto view = lease.state()->ViewOf(request.served->model->config().tokenizer, request.view_us)) {
      answer.view = *std::move(view);
      answer.pin = std::move(lease).Downgrade();
      Count(answer);
      return answer;
    }
  }
  if (!request.may_wait) {
    answer.busy = answer.long_work = true;
    return answer;
  }
  if (absl::Status status = BuildUncached(request, &answer); !status.ok()) return status;
  Count(answer);
  return answer;
}

// The quick way: the state is there, knows everything, and its view suffices.
bool UserStateProvider::TryCached(const StateRequest& request, const std::shared_ptr<CacheEntry>& entry,
                                  StateAnswer* answer) {
  StatePin pin;
  if (!StatePin::TryAcquire(entry, &pin)) return false;
  const UserState* state = pin.state();
  const TokenizerConfig& config = request.served->model->config().tokenizer;
  if (state == nullptr || !state->IsOf(answer->head) || !state->Covers(request.view_us)) return false;
  if (state->NeedsAdvance(config, request.view_us, *catalog_, request.user.ns)) return false;
  auto view = state->ViewOf(config, request.view_us);
  if (!view.has_value()) return false;
  answer->view = *std::move(view);
  const size_t bytes = state->Bytes();
  answer->report = {.source = "hit", .tier = "host", .rows_reused = state->rows(), .state_bytes = bytes};
  evictions_->Add(static_cast<double>(cache_->SetBytes(request.user, entry, bytes)));
  answer->pin = std::move(pin);
  return true;
}

absl::Status UserStateProvider::BringUpToDate(const StateRequest& request, std::unique_ptr<UserState>* state,
                                              StateAnswer* answer) {
  if (*state == nullptr) return Rebuild(request, state, answer);
  // Read again: another thread may have extended the state since the head was read.
  absl::StatusOr<HistoryTail> tail;
  {
    Stopwatch watch(clock_, &answer->store_us);
    tail = store_->Tail(request.user, (*state)->head().seq);
  }
  if (!tail.ok()) return tail.status();
  if (!(*state)->CanExtend(*tail, request.view_us)) return Rebuild(request, state, answer);
  if (!request.may_wait && tail->events.size() > request.quick_events) {
    answer->busy = answer->long_work = true;
    return absl::OkStatus();
  }
  if (!(*state)->Verify()) {
    hash_mismatches_->Add();
    return Rebuild(request, state, answer);
  }
  ItemReader items(catalog_, request.user.ns);
  return (*state)->Extend(*request.served->model, *std::move(tail), request.view_us, &items, &answer->report,
                          request.between);
}

absl::Status UserStateProvider::Rebuild(const StateRequest& request, std::unique_ptr<UserState>* state,
                                        StateAnswer* answer) {
  if (!request.may_wait && answer->head.events > request.quick_events) {
    answer->busy = answer->long_work = true;
    return absl::OkStatus();
  }
  *state = nullptr;  // free the old one first
  HistoryRange range;
  // A look back may begin anywhere; otherwise only events that came since the head was read could be too many.
  const bool past = request.view_us <= answer->head.newest_us;
  range.newest = past ? UINT64_MAX : static_cast<uint64_t>(request.events_max) + kAnchorEvents;
  absl::StatusOr<HistoryStore::Snapshot> snapshot;
  {
    Stopwatch watch(clock_, &answer->store_us);
    snapshot = store_->Read(request.user, range);
    if (snapshot.ok() && snapshot->events.size() == range.newest &&
        (snapshot->events.front().time_us >= request.view_us ||
         snapshot->events.size() <
             snapshot->head.events - static_cast<uint64_t>(AnchorOf(*snapshot, request.view_us, request.events_max) -
                                                           snapshot->head.first_index))) {
      snapshot = store_->Read(request.user, {});
    }
  }
  if (!snapshot.ok()) return snapshot.status();
  auto fresh = std::make_unique<UserState>(*request.served->model, request.events_max);
  ItemReader items(catalog_, request.user.ns);
  const absl::Status status = fresh->Build(*request.served->model, *std::move(snapshot), request.view_us, &items,
                                           &answer->report, request.between);
  if (status.ok()) *state = std::move(fresh);
  return status;
}

absl::Status UserStateProvider::BuildUncached(const StateRequest& request, StateAnswer* answer) {
  HistoryRange range;
  range.as_of = {request.view_us, request.known_by_us};
  absl::StatusOr<HistoryStore::Snapshot> snapshot;
  {
    Stopwatch watch(clock_, &answer->store_us);
    snapshot = store_->Read(request.user, range);
  }
  if (!snapshot.ok()) return snapshot.status();
  auto state = std::make_unique<UserState>(*request.served->model, request.events_max);
  ItemReader items(catalog_, request.user.ns);
  answer->report = {};
  const absl::Status status = state->BuildFrom(*request.served->model, snapshot->head, std::move(snapshot->events),
                                               request.view_us, &items, &answer->report, request.between);
  if (!status.ok()) return status;
  answer->head = snapshot->head;
  auto view = state->ViewOf(request.served->model->config().tokenizer, request.view_us);
  if (!view.has_value()) return absl::InternalError("a state built for a view cannot answer it");
  answer->view = *std::move(view);
  answer->pin = StatePin::Private(std::move(state));
  return absl::OkStatus();
}

void UserStateProvider::Count(const StateAnswer& answer) {
  const std::string& source = answer.report.source;
  ++(source == "hit"        ? totals_.hit
     : source == "extend"   ? totals_.extend
     : source == "truncate" ? totals_.truncate
     : source == "rebuild"  ? totals_.rebuild
     : source == "uncached" ? totals_.uncached
                            : totals_.empty);
  metrics_->GetCounter("backstory_state_total", "User states handed out, by what it took", {{"source", source}})->Add();
  rows_reused_->Add(static_cast<double>(answer.report.rows_reused));
  rows_computed_->Add(static_cast<double>(answer.report.rows_computed));
}

}  // namespace backstory
