#include "serving/rpc/handlers.h"

#include <utility>
#include <vector>

#include "serving/rpc/rank_wire.h"
#include "serving/rpc/recommend_wire.h"
#include "serving/rpc/wire.h"

namespace backstory::rpc {

Handlers::Handlers(Engine* engine, Clock* clock, Options options)
    : engine_(engine), clock_(clock), options_(std::move(options)) {}

void Handlers::Rank(const v1::RankRequest& request, const CallContext& context, v1::RankResponse* response,
                    Done done) const {
  auto query = RankQueryFromWire(request);
  if (!query.ok()) return done(query.status());
  query->deadline_us = context.deadline_us;
  query->cancel = context.cancel;
  engine_->Rank(*std::move(query), [response, timings = request.stage_timings(),
                                    done = std::move(done)](absl::StatusOr<RankReply> reply) {
    if (!reply.ok()) return done(reply.status());
    RankReplyToWire(*reply, timings, response);
    done(absl::OkStatus());
  });
}

void Handlers::Recommend(const v1::RecommendRequest& request, const CallContext& context,
                         v1::RecommendResponse* response, Done done) const {
  auto query = RecommendQueryFromWire(request);
  if (!query.ok()) return done(query.status());
  query->request.deadline_us = context.deadline_us;
  query->request.cancel = context.cancel;
  engine_->Recommend(*std::move(query), [response, timings = request.stage_timings(),
                                         done = std::move(done)](absl::StatusOr<RecommendReply> reply) {
    if (!reply.ok()) return done(reply.status());
    RecommendReplyToWire(*reply, timings, response);
    done(absl::OkStatus());
  });
}

absl::Status Handlers::GetHistory(const v1::GetHistoryRequest& request, v1::GetHistoryResponse* response) const {
  auto user = UserKeyFromWire(request.namespace_(), "user", request.user());
  if (!user.ok()) return user.status();
  auto range = RangeFromWire(request);
  if (!range.ok()) return range.status();
  auto snapshot = engine_->store().Read(*user, *range);
  if (!snapshot.ok()) return snapshot.status();
  HeadToWire(snapshot->head, response->mutable_head());
  for (const Event& event : snapshot->events) EventToWire(event, response->add_events());
  return absl::OkStatus();
}

absl::Status Handlers::Head(const v1::HeadRequest& request, v1::HeadResponse* response) const {
  auto user = UserKeyFromWire(request.namespace_(), "user", request.user());
  if (!user.ok()) return user.status();
  auto head = engine_->store().Head(*user);
  if (!head.ok()) return head.status();
  HeadToWire(*head, response->mutable_head());
  return absl::OkStatus();
}

absl::Status Handlers::Delete(const v1::DeleteRequest& request, v1::DeleteResponse* response) const {
  auto user = UserKeyFromWire(request.namespace_(), "user", request.user());
  if (!user.ok()) return user.status();
  auto selector = SelectorFromWire(request);
  if (!selector.ok()) return selector.status();
  auto deleted = engine_->Delete(*user, *selector);
  if (!deleted.ok()) return deleted.status();
  response->set_deleted(*deleted);
  return absl::OkStatus();
}

absl::Status Handlers::Merge(const v1::MergeRequest& request, v1::MergeResponse* response) const {
  auto alias = UserKeyFromWire(request.namespace_(), "alias", request.alias());
  if (!alias.ok()) return alias.status();
  auto primary = UserKeyFromWire(request.namespace_(), "primary", request.primary());
  if (!primary.ok()) return primary.status();
  if (*alias == *primary) return BadField("alias", "must differ from primary");
  auto head = engine_->Merge(*alias, *primary);
  if (!head.ok()) return head.status();
  HeadToWire(*head, response->mutable_head());
  return absl::OkStatus();
}

void Handlers::Prefetch(const v1::PrefetchRequest& request, const CallContext& context, v1::PrefetchResponse* response,
                        Done done) const {
  constexpr int kModelsMax = 16;
  auto user = UserKeyFromWire(request.namespace_(), "user", request.user());
  if (!user.ok()) return done(user.status());
  if (auto s = CheckCount("models", request.models_size(), 0, kModelsMax); !s.ok()) return done(s);
  std::vector<ModelChoice> models;
  for (const auto& spec : request.models()) {
    auto choice = ModelFromWire("models", spec);
    if (!choice.ok()) return done(choice.status());
    models.push_back(*std::move(choice));
  }
  engine_->Prefetch(*user, models, context.deadline_us,
                    [response, done = std::move(done)](absl::StatusOr<std::vector<CacheReport>> reports) {
                      if (!reports.ok()) return done(reports.status());
                      for (const CacheReport& report : *reports) CacheReportToWire(report, response->add_states());
                      done(absl::OkStatus());
                    });
}

absl::Status Handlers::UpsertItems(const v1::UpsertItemsRequest& request, v1::UpsertItemsResponse* response) const {
  auto ns = NamespaceFromWire(request.namespace_());
  if (!ns.ok()) return ns.status();
  if (auto s = CheckCount("items", request.items_size(), 1, kItemsPerCallMax); !s.ok()) return s;
  std::vector<Item> items;
  items.reserve(request.items_size());
  for (int i = 0; i < request.items_size(); ++i) {
    auto item = ItemFromWire("items[" + std::to_string(i) + "]", request.items(i));
    if (!item.ok()) return item.status();
    items.push_back(*std::move(item));
  }
  auto encoded = engine_->UpsertItems(*ns, items);
  if (!encoded.ok()) return encoded.status();
  for (const Engine::EncodedItem& one : *encoded) {
    auto* out = response->add_encoded();
    out->set_item_id(one.item_id);
    out->set_model(one.model);
    out->set_version(one.version);
    out->mutable_sid()->Assign(one.sid.begin(), one.sid.end());
  }
  response->set_version(engine_->catalog().Version(*ns));
  return absl::OkStatus();
}

absl::Status Handlers::GetItems(const v1::GetItemsRequest& request, v1::GetItemsResponse* response) const {
  auto ns = NamespaceFromWire(request.namespace_());
  if (!ns.ok()) return ns.status();
  if (auto s = CheckCount("item_ids", request.item_ids_size(), 1, kItemsPerCallMax); !s.ok()) return s;
  for (uint64_t id : request.item_ids()) {
    if (auto item = engine_->catalog().Find(*ns, id); item != nullptr) {
      ItemToWire(*item, response->add_items());
    } else {
      response->add_unknown_ids(id);
    }
  }
  response->set_version(engine_->catalog().Version(*ns));
  return absl::OkStatus();
}

}  // namespace backstory::rpc
