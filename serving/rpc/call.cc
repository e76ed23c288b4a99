#include "serving/rpc/call.h"

#include <grpcpp/server_context.h>

#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "serving/engine/shed.h"
#include "serving/rpc/stream_call.h"

namespace backstory::rpc {
namespace {

constexpr int64_t kDrainPushbackMs = 500;
constexpr char kPushbackTrailer[] = "grpc-retry-pushback-ms";

LogLevel LevelOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown:
      return LogLevel::kError;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kPermissionDenied:
      return LogLevel::kWarning;
    default:
      return LogLevel::kInfo;
  }
}

}  // namespace

bool Gate::Enter() {
  std::lock_guard lock(mutex_);
  if (draining_) {
    ++refused_;
    return false;
  }
  ++inside_;
  return true;
}

void Gate::Leave() {
  std::lock_guard lock(mutex_);
  if (--inside_ == 0) empty_.notify_all();
}

bool Gate::Open(StreamCall* stream) {
  std::lock_guard lock(mutex_);
  if (draining_) return false;
  streams_.insert(stream);
  return true;
}

void Gate::Close(StreamCall* stream) {
  std::lock_guard lock(mutex_);
  streams_.erase(stream);
  if (streams_.empty()) empty_.notify_all();
}

bool Gate::Drain(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  draining_ = true;
  // Under the lock: a stream removes itself (Close) before it is deleted.
  for (StreamCall* stream : streams_) stream->BeginDrain();
  return empty_.wait_for(lock, timeout, [this] { return inside_ == 0 && streams_.empty(); });
}

int64_t Gate::inside() const {
  std::lock_guard lock(mutex_);
  return inside_;
}

int64_t Gate::refused() const {
  std::lock_guard lock(mutex_);
  return refused_;
}

Caller CallerOf(const grpc::CallbackServerContext& context) {
  constexpr absl::string_view kBearer = "Bearer ";
  Caller caller;
  caller.loopback = IsLoopbackPeer(context.peer());
  const auto& metadata = context.client_metadata();
  if (auto it = metadata.find("authorization"); it != metadata.end()) {
    const absl::string_view value(it->second.data(), it->second.size());
    if (absl::StartsWith(value, kBearer)) caller.bearer_token = std::string(value.substr(kBearer.size()));
  }
  if (const auto auth = context.auth_context(); auth != nullptr && auth->IsPeerAuthenticated()) {
    const auto names = auth->FindPropertyValues("x509_common_name");
    if (!names.empty()) caller.common_name = std::string(names[0].data(), names[0].size());
  }
  return caller;
}

CallContext MakeCallContext(const ServiceContext& service, const grpc::CallbackServerContext& context) {
  CallContext out;
  const auto now = std::chrono::steady_clock::now();
  const auto deadline = ResolveDeadline(context.deadline(), std::chrono::system_clock::now(), now, service.deadlines);
  out.deadline_us =
      service.clock->MonotonicMicros() + std::chrono::duration_cast<std::chrono::microseconds>(deadline - now).count();
  out.cancel = std::make_shared<CancelToken>();
  return out;
}

CallContext WithPatience(const ServiceContext& service, const grpc::CallbackServerContext& context,
                         v1::Criticality criticality, CallContext call) {
  const bool patient = criticality == v1::CRITICALITY_BATCH || criticality == v1::CRITICALITY_SHADOW;
  if (patient && context.deadline() == std::chrono::system_clock::time_point::max()) {
    call.deadline_us = service.clock->MonotonicMicros() +
                       std::chrono::duration_cast<std::chrono::microseconds>(service.deadlines.max_timeout).count();
  }
  return call;
}

absl::Status CheckOverrides(const ServiceContext& service, const Caller& caller, bool overrides, Method method) {
  if (!overrides) return absl::OkStatus();
  return service.roles->Require(caller, Role::kOverride,
                                absl::StrCat("parameters in ", std::string(MethodName(method))));
}

absl::Status CheckAnswerSize(const ServiceContext& service, Method method, const google::protobuf::Message& answer) {
  const size_t bytes = answer.ByteSizeLong();
  if (bytes <= service.message_bytes_max) return absl::OkStatus();
  const std::string_view what = method == Method::kGetHistory  ? "lower newest, or raise from_us"
                                : method == Method::kRecommend ? "lower count or explain_top"
                                : method == Method::kRank || method == Method::kRankStream
                                    ? "send fewer candidates or lower explain_top"
                                    : "ask for less; what the call was to change is changed";
  return absl::InvalidArgumentError(absl::StrCat("the answer would have ", bytes,
                                                 " bytes, limits.max_message_bytes is ", service.message_bytes_max,
                                                 ": ", std::string(what)));
}

CallScope::CallScope(const ServiceContext* service, Method method, grpc::CallbackServerContext* context,
                     size_t request_bytes)
    : service_(service), method_(method), context_(context), start_us_(service->clock->MonotonicMicros()) {
  service_->metrics->Started(method, request_bytes);
}

CallScope::~CallScope() {
  if (entered_) service_->gate->Leave();
}

absl::Status CallScope::Enter() {
  entered_ = service_->gate->Enter();
  return entered_ ? absl::OkStatus() : ShedStatus("the server is draining", kDrainPushbackMs);
}

grpc::Status CallScope::End(const absl::Status& status, size_t response_bytes) {
  const grpc::Status out = ToGrpc(status);
  if (const auto pushback_ms = RetryPushbackMs(status)) {
    context_->AddTrailingMetadata(kPushbackTrailer, std::to_string(*pushback_ms));
  }
  const double seconds = 1e-6 * static_cast<double>(service_->clock->MonotonicMicros() - start_us_);
  service_->metrics->Ended(method_, out.error_code(), seconds, response_bytes);
  if (!status.ok()) {
    const std::string method(MethodName(method_));
    const std::string code(CodeName(out.error_code()));
    service_->log->WriteLimited(
        method + code, LevelOf(status.code()), "call failed",
        {{"method", method}, {"code", code}, {"reason", std::string(status.message())}, {"seconds", seconds}});
  }
  return out;
}

}  // namespace backstory::rpc
