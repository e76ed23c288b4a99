// A small blocking client for system tests: one call, one line.
#ifndef BACKSTORY_TESTS_SYSTEM_CLIENT_H_
#define BACKSTORY_TESTS_SYSTEM_CLIENT_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backstory/v1/history.grpc.pb.h"
#include "backstory/v1/ranking.grpc.pb.h"

namespace backstory {

inline constexpr char kSystemNamespace[] = "system";

inline v1::Event Exposure(uint64_t id, int64_t time_us, uint64_t item) {
  v1::Event event;
  event.set_kind(v1::EVENT_KIND_EXPOSURE);
  event.set_event_id(id);
  event.set_time_us(time_us);
  event.set_item_id(item);
  return event;
}

inline v1::Event Click(uint64_t id, int64_t time_us, uint64_t item, uint64_t exposure_id) {
  v1::Event event = Exposure(id, time_us, item);
  event.set_kind(v1::EVENT_KIND_ACTION);
  event.set_action(v1::ACTION_TYPE_CLICK);
  event.set_exposure_id(exposure_id);
  return event;
}

class SystemClient {
 public:
  explicit SystemClient(const std::shared_ptr<grpc::Channel>& channel)
      : history_(v1::History::NewStub(channel)), ranking_(v1::Ranking::NewStub(channel)) {}

  std::pair<grpc::Status, v1::AppendResponse> Append(const std::string& user, const std::vector<v1::Event>& events) {
    v1::AppendRequest request;
    request.set_namespace_(kSystemNamespace);
    request.mutable_user()->set_user(user);
    for (const v1::Event& event : events) *request.add_events() = event;
    auto context = Context();
    v1::AppendResponse response;
    grpc::Status status = history_->Append(context.get(), request, &response);
    return {status, response};
  }

  std::pair<grpc::Status, v1::GetHistoryResponse> Get(const std::string& user) {
    v1::GetHistoryRequest request;
    request.set_namespace_(kSystemNamespace);
    request.mutable_user()->set_user(user);
    request.mutable_as_of()->set_event_time_us(INT64_MAX);
    request.set_newest(100'000);
    auto context = Context();
    v1::GetHistoryResponse response;
    grpc::Status status = history_->Get(context.get(), request, &response);
    return {status, response};
  }

  std::pair<grpc::Status, v1::RankResponse> Rank(const std::string& user, int64_t now_us,
                                                 const std::vector<uint64_t>& items, uint64_t request_id = 0) {
    v1::RankRequest request;
    request.set_namespace_(kSystemNamespace);
    request.mutable_units()->mutable_user()->set_user(user);
    request.set_now_us(now_us);
    request.set_request_id(request_id);
    for (const uint64_t item : items) request.mutable_candidates()->add_item_ids(item);
    auto context = Context();
    v1::RankResponse response;
    grpc::Status status = ranking_->Rank(context.get(), request, &response);
    return {status, response};
  }

  v1::History::Stub& history() { return *history_; }
  v1::Ranking::Stub& ranking() { return *ranking_; }

  static std::unique_ptr<grpc::ClientContext> Context(int seconds = 20) {
    auto context = std::make_unique<grpc::ClientContext>();
    context->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(seconds));
    return context;
  }

 private:
  std::unique_ptr<v1::History::Stub> history_;
  std::unique_ptr<v1::Ranking::Stub> ranking_;
};

}  // namespace backstory

#endif  // BACKSTORY_TESTS_SYSTEM_CLIENT_H_
