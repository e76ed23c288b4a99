#include "serving/engine/recommend/generative_state_provider.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "serving/engine/user_state.h"

namespace backstory {
namespace {

// As for ranking: a view further ahead of the clock than events may be leaves the cached state alone.
constexpr int64_t kViewAheadMaxUs = int64_t{24} * 3600 * 1'000'000;

}  // namespace

GenerativeStateProvider::GenerativeStateProvider(HistoryStore* store, Catalog* catalog, UserStateCache* cache,
                                                 Clock* clock, Metrics* metrics)
    : store_(store), catalog_(catalog), cache_(cache), clock_(clock), metrics_(metrics) {}

std::string GenerativeStateProvider::StateKey(const GenerativeModel& model, uint64_t parameter_hash) {
  return absl::StrCat(model.state_id(), ":", absl::Hex(parameter_hash, absl::kZeroPad16));
}

absl::StatusOr<GenerativeStateAnswer> GenerativeStateProvider::Acquire(const GenerativeStateRequest& request) {
  GenerativeStateAnswer answer;
  const int64_t start_us = clock_->MonotonicMicros();
  const absl::StatusOr<UserHead> head = store_->Head(request.user);
  answer.store_us = clock_->MonotonicMicros() - start_us;
  if (!head.ok()) return head.status();
  std::shared_ptr<const glass::Catalogue> catalogue = request.model->CatalogueOf(request.user.ns, *catalog_);
  if (head->events == 0) {
    // Encoding nothing is cheap, and users that nobody knows must not push out the states of those who are known.
    auto state = std::make_unique<GenerativeState>(std::move(catalogue), request.events_max);
    if (auto s = state->Build(*request.model, {*head, {}}, request.view_us); !s.ok()) return s;
    answer.report = {.source = "empty"};
    answer.pin = StatePin::Private(std::move(state));
    Count(answer);
    return answer;
  }
  absl::StatusOr<bool> uncached =
      request.known_by_us != AsOf::kAnyIngestTime || request.view_us > clock_->WallMicros() + kViewAheadMaxUs;
  if (!*uncached) uncached = BeginsElsewhere(request, *head, &answer);
  if (!uncached.ok()) return uncached.status();
  if (*uncached) return BuildUncached(request, std::move(catalogue), std::move(answer));
  const auto entry = cache_->Get(request.user, StateKey(*request.model, request.parameter_hash));
  if (StatePin::TryAcquire(entry, &answer.pin)) {
    const GenerativeState* state = answer.pin.generative();
    if (state != nullptr && state->IsOf(*head, catalogue.get()) && state->Answers(request.view_us) &&
        !request.model->searcher().Outdated(state->encoded())) {
      answer.report = {.source = "hit", .tier = "host", .rows_reused = state->events(), .state_bytes = state->Bytes()};
      Count(answer);
      return answer;
    }
    answer.pin.Release();
  }
  StateLease lease = StateLease::Acquire(entry);
  const absl::Status status = BringUpToDate(request, &lease.generative(), &answer);
  if (!status.ok()) lease.generative() = nullptr;
  metrics_->GetCounter("backstory_cache_evictions_total", "User states evicted to stay within the budget")
      ->Add(static_cast<double>(cache_->SetBytes(request.user, entry, status.ok() ? lease.generative()->Bytes() : 0)));
  if (!status.ok()) return status;
  if (!lease.generative()->Answers(request.view_us)) {
    // The past of the state: it stays for those who ask about now.
    return BuildUncached(request, std::move(catalogue), std::move(answer));
  }
  answer.report.state_bytes = lease.generative()->Bytes();
  answer.pin = std::move(lease).Downgrade();
  Count(answer);
  return answer;
}

// Whether what came at or after the view has moved where the present history of a long user begins (AnchorOf).
absl::StatusOr<bool> GenerativeStateProvider::BeginsElsewhere(const GenerativeStateRequest& request,
                                                              const UserHead& head, GenerativeStateAnswer* answer) {
  if (static_cast<int64_t>(head.events) <= request.events_max || request.view_us > head.newest_us) return false;
  HistoryRange after;
  after.from_us = request.view_us;
  const int64_t start_us = clock_->MonotonicMicros();
  const absl::StatusOr<HistoryStore::Snapshot> snapshot = store_->Read(request.user, after);
  answer->store_us += clock_->MonotonicMicros() - start_us;
  if (!snapshot.ok()) return snapshot.status();
  UserHead seen = snapshot->head;
  seen.events -= snapshot->events.size();
  return AnchorOf(seen, request.events_max) != AnchorOf(snapshot->head, request.events_max);
}

absl::Status GenerativeStateProvider::BringUpToDate(const GenerativeStateRequest& request,
                                                    std::unique_ptr<GenerativeState>* state,
                                                    GenerativeStateAnswer* answer) {
  // Taken while the state is ours, so that it never goes back to a catalogue with fewer rows.
  std::shared_ptr<const glass::Catalogue> catalogue = request.model->CatalogueOf(request.user.ns, *catalog_);
  if (*state != nullptr) {
    const int64_t start_us = clock_->MonotonicMicros();
    absl::StatusOr<HistoryTail> tail = store_->Tail(request.user, (*state)->head().seq);
    answer->store_us += clock_->MonotonicMicros() - start_us;
    if (!tail.ok()) return tail.status();
    // A request about the past must not cost the present its state: the view never moves back.
    if ((*state)->CanExtend(*tail, std::max(request.view_us, (*state)->view_us()), *catalogue)) {
      if ((*state)->Verify()) {
        const uint64_t before = (*state)->events();
        (*state)->Extend(*request.model, std::move(catalogue), *std::move(tail), request.view_us);
        const uint64_t more = (*state)->events() - before;
        answer->report = {
            .source = more > 0 ? "extend" : "hit", .tier = "host", .rows_reused = before, .rows_computed = more};
        return absl::OkStatus();
      }
      metrics_
          ->GetCounter("backstory_state_hash_mismatch_total",
                       "Cached states whose rolling hash no longer fitted and that were rebuilt")
          ->Add();
    }
  }
  *state = nullptr;  // free the old one first
  absl::StatusOr<HistoryStore::Snapshot> snapshot =
      Read(request, {}, static_cast<uint64_t>(request.events_max) + kAnchorEvents, answer);
  if (!snapshot.ok()) return snapshot.status();
  auto fresh = std::make_unique<GenerativeState>(std::move(catalogue), request.events_max);
  if (auto s = fresh->Build(*request.model, *std::move(snapshot), request.view_us); !s.ok()) return s;
  answer->report = {.source = "rebuild", .rows_computed = fresh->events()};
  *state = std::move(fresh);
  return absl::OkStatus();
}

absl::StatusOr<HistoryStore::Snapshot> GenerativeStateProvider::Read(const GenerativeStateRequest& request, AsOf as_of,
                                                                     uint64_t newest, GenerativeStateAnswer* answer) {
  HistoryRange range;
  range.as_of = as_of;
  range.newest = newest;
  const int64_t start_us = clock_->MonotonicMicros();
  absl::StatusOr<HistoryStore::Snapshot> snapshot = store_->Read(request.user, range);
  answer->store_us += clock_->MonotonicMicros() - start_us;
  return snapshot;
}

absl::StatusOr<GenerativeStateAnswer> GenerativeStateProvider::BuildUncached(
    const GenerativeStateRequest& request, std::shared_ptr<const glass::Catalogue> catalogue,
    GenerativeStateAnswer answer) {
  // All of it: where the anchor lies follows from how many events there are.
  absl::StatusOr<HistoryStore::Snapshot> snapshot =
      Read(request, {request.view_us, request.known_by_us}, UINT64_MAX, &answer);
  if (!snapshot.ok()) return snapshot.status();
  // The head counts what this read was not to see: what it gave is the whole history here.
  const UserHead head = snapshot->head;
  snapshot->head.events = snapshot->events.size();
  snapshot->head.first_index = 0;
  auto state = std::make_unique<GenerativeState>(std::move(catalogue), request.events_max);
  if (auto s = state->Build(*request.model, *std::move(snapshot), request.view_us); !s.ok()) return s;
  state->SetHead(head);
  answer.report = {.source = "uncached", .rows_computed = state->events(), .state_bytes = state->Bytes()};
  answer.pin = StatePin::Private(std::move(state));
  Count(answer);
  return answer;
}

void GenerativeStateProvider::Count(const GenerativeStateAnswer& answer) {
  metrics_
      ->GetCounter("backstory_generative_state_total", "User states of generative versions handed out, by what it took",
                   {{"source", answer.report.source}})
      ->Add();
}

}  // namespace backstory
