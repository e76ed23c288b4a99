// Handlers: the two ways to append.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "serving/engine/shed.h"
#include "serving/rpc/handlers.h"
#include "serving/rpc/wire.h"

namespace backstory::rpc {
namespace {

// One user's part of a stream batch. Invalid events are refused one by one, so the kept ones remember where they stood.
struct Part {
  HistoryStore::UserBatch batch;
  std::vector<int> kept;                          // index of batch.events[i] in the request
  std::vector<std::pair<int, std::string>> bad;  // index in the request, reason
};

std::string EventPath(int index) { return "events[" + std::to_string(index) + "]"; }

absl::StatusOr<Part> PartFromWire(const v1::AppendRequest& request, int64_t now_us) {
  Part part;
  auto user = UserKeyFromWire(request.namespace_(), "users.user", request.user());
  if (!user.ok()) return user.status();
  part.batch.user = *std::move(user);
  for (int i = 0; i < request.events_size(); ++i) {
    auto event = EventFromWire(EventPath(i), request.events(i), now_us);
    if (!event.ok()) {
      part.bad.emplace_back(i, std::string(event.status().message()));
      continue;
    }
    part.batch.events.push_back(*std::move(event));
    part.kept.push_back(i);
  }
  return part;
}

void PartToWire(const Part& part, const AppendResult& result, v1::AppendResponse* out) {
  std::vector<uint64_t> ids;
  ids.reserve(part.batch.events.size());
  for (const Event& event : part.batch.events) ids.push_back(event.event_id);
  AppendResultToWire(result, ids, out);
  for (auto& refusal : *out->mutable_refusals()) refusal.set_index(part.kept[refusal.index()]);
  for (const auto& [index, reason] : part.bad) {
    auto* refusal = out->add_refusals();
    refusal->set_index(index);
    refusal->set_reason(reason);
  }
  out->set_rejected(out->rejected() + static_cast<uint32_t>(part.bad.size()));
  std::sort(out->mutable_refusals()->begin(), out->mutable_refusals()->end(),
            [](const v1::Refusal& a, const v1::Refusal& b) { return a.index() < b.index(); });
}

absl::Status PartsFromWire(const v1::AppendStreamRequest& request, int64_t now_us, std::vector<Part>* parts,
                           Durability* durability) {
  if (auto s = CheckCount("users", request.users_size(), 1, kUsersPerBatchMax); !s.ok()) return s;
  uint64_t events = 0;
  for (const auto& user : request.users()) events += user.events_size();
  if (auto s = CheckCount("users.events", events, 1, kEventsPerBatchMax); !s.ok()) return s;
  for (const auto& user : request.users()) {
    auto part = PartFromWire(user, now_us);
    if (!part.ok()) return part.status();
    auto wanted = DurabilityFromWire(user.durability());
    if (!wanted.ok()) return wanted.status();
    if (*wanted == Durability::kSynced) *durability = Durability::kSynced;
    parts->push_back(*std::move(part));
  }
  return absl::OkStatus();
}

void ErrorToWire(const absl::Status& status, v1::AppendStreamResponse* response) {
  response->clear_users();
  response->mutable_error()->set_code(static_cast<int>(status.code()));
  response->mutable_error()->set_message(std::string(status.message()));
  response->mutable_error()->set_retry_pushback_ms(RetryPushbackMs(status).value_or(0));
}

}  // namespace

absl::Status Handlers::Append(const v1::AppendRequest& request, v1::AppendResponse* response) const {
  auto user = UserKeyFromWire(request.namespace_(), "user", request.user());
  if (!user.ok()) return user.status();
  if (auto s = CheckCount("events", request.events_size(), 1, kEventsPerBatchMax); !s.ok()) return s;
  auto durability = DurabilityFromWire(request.durability());
  if (!durability.ok()) return durability.status();
  const int64_t now_us = clock_->WallMicros();
  std::vector<Event> events;
  std::vector<uint64_t> ids;
  for (int i = 0; i < request.events_size(); ++i) {
    auto event = EventFromWire(EventPath(i), request.events(i), now_us);
    if (!event.ok()) return event.status();
    ids.push_back(event->event_id);
    events.push_back(*std::move(event));
  }
  auto result = engine_->Append(*user, events, *durability);
  if (!result.ok()) return result.status();
  AppendResultToWire(*result, ids, response);
  return absl::OkStatus();
}

void Handlers::AppendBatches(std::span<const StreamBatch> batches) const {
  if (batches.size() == 1) return AppendTogether(batches);
  // One commit for everything that waits, as long as it all has one namespace of failure: if the commit as a whole is
  // refused (a slot that is not ours, say), each batch is tried alone so that it gets its own status.
  AppendTogether(batches);
  const bool refused = std::any_of(batches.begin(), batches.end(), [](const StreamBatch& b) {
    return b.response->has_error() && b.response->error().code() != static_cast<int>(absl::StatusCode::kInvalidArgument);
  });
  if (!refused) return;
  for (const StreamBatch& batch : batches) {
    if (!batch.response->has_error()) continue;
    batch.response->clear_error();
    AppendTogether({&batch, 1});
  }
}

void Handlers::AppendTogether(std::span<const StreamBatch> batches) const {
  const int64_t now_us = clock_->WallMicros();
  Durability durability = Durability::kBuffered;
  std::vector<Part> parts;
  std::vector<size_t> first(batches.size() + 1, 0);  // parts [first[b], first[b + 1]) belong to batch b
  for (size_t b = 0; b < batches.size(); ++b) {
    batches[b].response->set_batch_id(batches[b].request->batch_id());
    std::vector<Part> own;
    if (auto s = PartsFromWire(*batches[b].request, now_us, &own, &durability); !s.ok()) {
      ErrorToWire(s, batches[b].response);
      own.clear();
    }
    std::move(own.begin(), own.end(), std::back_inserter(parts));
    first[b + 1] = parts.size();
  }
  std::vector<HistoryStore::UserBatch> users;
  std::vector<size_t> user_of(parts.size(), SIZE_MAX);
  for (size_t p = 0; p < parts.size(); ++p) {
    if (parts[p].batch.events.empty()) continue;
    user_of[p] = users.size();
    users.push_back(parts[p].batch);
  }
  absl::StatusOr<std::vector<AppendResult>> results = std::vector<AppendResult>();
  if (!users.empty()) results = engine_->AppendMany(users, durability);
  for (size_t b = 0; b < batches.size(); ++b) {
    if (batches[b].response->has_error()) continue;
    if (!results.ok()) {
      ErrorToWire(results.status(), batches[b].response);
      continue;
    }
    for (size_t p = first[b]; p < first[b + 1]; ++p) {
      const AppendResult none;
      PartToWire(parts[p], user_of[p] == SIZE_MAX ? none : (*results)[user_of[p]], batches[b].response->add_users());
    }
  }
}

}  // namespace backstory::rpc
