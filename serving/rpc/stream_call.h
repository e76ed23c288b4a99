// One bidirectional stream with a window: at most `window` messages are read and not yet answered, so a slow consumer
// stops its own producer and nothing grows.
#ifndef BACKSTORY_SERVING_RPC_STREAM_CALL_H_
#define BACKSTORY_SERVING_RPC_STREAM_CALL_H_

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <deque>
#include <mutex>

#include "serving/rpc/call.h"

namespace backstory::rpc {

// Subclasses answer each OnMessage with exactly one Reply, from any thread. The stream ends OK after the client's
// half-close and the last reply; UNAVAILABLE after a drain's last reply; CANCELLED when the client is gone. Deletes itself.
class StreamCall : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  StreamCall(const ServiceContext* service, Method method, grpc::CallbackServerContext* context, int window);
  // Call once after construction: opens the stream or refuses it.
  void Start();
  void BeginDrain();

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 protected:
  ~StreamCall() override = default;
  // One at a time, in the order of the stream.
  virtual void OnMessage(grpc::ByteBuffer bytes) = 0;
  virtual void OnGone() {}  // the client cancelled: work for it may stop; replies are still owed
  void Reply(grpc::ByteBuffer bytes);

  const ServiceContext* const service_;
  const Method method_;
  grpc::CallbackServerContext* const context_;
  const Caller caller_;

 private:
  // Both hold the lock while they start an operation; gRPC never runs a reaction inside a Start call of this kind.
  void Advance(std::unique_lock<std::mutex> lock);

  const int window_;
  CallScope scope_;
  std::mutex mutex_;
  grpc::ByteBuffer incoming_;
  std::deque<grpc::ByteBuffer> outgoing_;  // guarded by mutex_; the front one is being written while writing_
  int in_flight_ = 0;                      // guarded by mutex_: read, and not yet answered and written
  bool reading_ = false, writing_ = false, read_closed_ = false, gone_ = false, draining_ = false, finished_ = false;
};

}  // namespace backstory::rpc

#endif  // BACKSTORY_SERVING_RPC_STREAM_CALL_H_
