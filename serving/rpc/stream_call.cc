#include "serving/rpc/stream_call.h"

#include <utility>

#include "serving/engine/shed.h"

namespace backstory::rpc {

StreamCall::StreamCall(const ServiceContext* service, Method method, grpc::CallbackServerContext* context, int window)
    : service_(service),
      method_(method),
      context_(context),
      caller_(CallerOf(*context)),
      window_(window),
      scope_(service, method, context, 0) {}

void StreamCall::Start() {
  const bool open = service_->gate->Open(this);
  std::unique_lock lock(mutex_);
  draining_ = draining_ || !open;
  Advance(std::move(lock));
}

void StreamCall::BeginDrain() {
  std::unique_lock lock(mutex_);
  draining_ = true;
  Advance(std::move(lock));
}

void StreamCall::OnReadDone(bool ok) {
  std::unique_lock lock(mutex_);
  read_closed_ = read_closed_ || !ok;
  const bool take = ok && !draining_ && !gone_;
  if (take) {
    ++in_flight_;
    grpc::ByteBuffer bytes;
    bytes.Swap(&incoming_);
    lock.unlock();
    OnMessage(std::move(bytes));
    lock.lock();
  }
  // Not earlier: a reply on another thread would start the next read, and its message could overtake this one.
  reading_ = false;
  Advance(std::move(lock));
}

void StreamCall::Reply(grpc::ByteBuffer bytes) {
  std::unique_lock lock(mutex_);
  outgoing_.push_back(std::move(bytes));
  Advance(std::move(lock));
}

void StreamCall::OnWriteDone(bool ok) {
  std::unique_lock lock(mutex_);
  writing_ = false;
  outgoing_.pop_front();
  --in_flight_;
  gone_ = gone_ || !ok;
  Advance(std::move(lock));
}

void StreamCall::OnCancel() {
  {
    std::unique_lock lock(mutex_);
    gone_ = true;
  }
  OnGone();
  Advance(std::unique_lock(mutex_));
}

void StreamCall::Advance(std::unique_lock<std::mutex> lock) {
  if (finished_) return;
  if (gone_ && !writing_) {
    in_flight_ -= static_cast<int>(outgoing_.size());
    outgoing_.clear();
  }
  if (!writing_ && !outgoing_.empty()) {
    writing_ = true;
    StartWrite(&outgoing_.front());
  }
  if (!reading_ && !read_closed_ && !draining_ && !gone_ && in_flight_ < window_) {
    reading_ = true;
    StartRead(&incoming_);
  }
  if (in_flight_ > 0 || writing_ || !(read_closed_ || draining_ || gone_)) return;
  finished_ = true;
  absl::Status status;
  if (gone_) {
    status = absl::CancelledError("the client is gone");
  } else if (draining_ && !read_closed_) {
    status = ShedStatus("the server is draining; send again what was not answered", 500);
  }
  const grpc::Status final_status = scope_.End(status, 0);
  lock.unlock();
  Finish(final_status);
}

void StreamCall::OnDone() {
  service_->gate->Close(this);
  delete this;
}

}  // namespace backstory::rpc
