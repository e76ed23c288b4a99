#include "serving/cli/rank_client.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "absl/strings/str_cat.h"

namespace backstory {
namespace {

// Stream request ids lie where no logged request of a real event does: an id shared with events is a tie group.
constexpr uint64_t kRequestIdBase = 0xF000'0000'0000'0001;
constexpr size_t kInFlightMax = 16;        // of one stream
constexpr int kRefusalsMax = 10'000;       // UNAVAILABLE replies in all before giving up
constexpr int64_t kPushbackDefaultMs = 20;

// What the streams of one RankAll share.
struct Shared {
  std::mutex mutex;
  absl::Status status;              // guarded by mutex: the first error
  size_t answered = 0;              // guarded by mutex
  int refusals = 0;                 // guarded by mutex
  std::atomic<bool> failed{false};  // status is not OK

  void Fail(absl::Status status_now) {
    std::lock_guard lock(mutex);
    if (status.ok()) status = std::move(status_now);
    failed = true;
  }

  // Runs `done` alone, counts the answer.
  void Take(const std::function<absl::Status()>& done, const std::function<void(size_t)>& progress) {
    std::lock_guard lock(mutex);
    absl::Status taken = done();
    if (!taken.ok()) {
      if (status.ok()) status = std::move(taken);
      failed = true;
    } else if (++answered % 64 == 0) {
      progress(answered);
    }
  }

  // Whether a request that was shed may be sent again.
  bool Forgive() {
    std::lock_guard lock(mutex);
    return ++refusals <= kRefusalsMax;
  }
};

absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

// The requests of one stream: which to send next, and how many wait for their reply.
class Outbox {
 public:
  explicit Outbox(std::deque<size_t> requests) : open_(requests.size()), waiting_(std::move(requests)) {}

  // Waits for room and a request. False: all were answered, or Close.
  bool Next(size_t* i) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return closed_ || open_ == 0 || (!waiting_.empty() && in_flight_ < kInFlightMax); });
    if (closed_ || open_ == 0) return false;
    *i = waiting_.front();
    waiting_.pop_front();
    ++in_flight_;
    return true;
  }
  void Answered() {
    std::lock_guard lock(mutex_);
    --in_flight_;
    --open_;
    changed_.notify_all();
  }
  void Again(size_t i) {
    std::lock_guard lock(mutex_);
    --in_flight_;
    waiting_.push_back(i);
    changed_.notify_all();
  }
  void Close() {
    std::lock_guard lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t open_;                  // guarded by mutex_: not answered yet
  std::deque<size_t> waiting_;   // guarded by mutex_
  size_t in_flight_ = 0;         // guarded by mutex_
  bool closed_ = false;          // guarded by mutex_
};

}  // namespace

absl::Status RankAll(v1::Ranking::Stub* stub, std::vector<v1::RankRequest>* requests, int streams,
                     const std::function<absl::Status(size_t, const v1::RankResponse&)>& done,
                     const std::function<void(size_t)>& progress) {
  Shared shared;
  const auto take_reply = [&](const v1::RankStreamResponse& reply, Outbox* outbox) {
    const size_t i = reply.request_id() - kRequestIdBase;
    if (i >= requests->size()) {
      shared.Fail(absl::InternalError(absl::StrCat("reply to unknown request_id ", reply.request_id())));
    } else if (!reply.has_error()) {
      shared.Take([&] { return done(i, reply.response()); }, progress);
      outbox->Answered();
    } else if (reply.error().code() == grpc::StatusCode::UNAVAILABLE && shared.Forgive()) {
      // Shed under load: the server says when to come back. Waiting here also slows this stream down, as asked.
      const int64_t asked_ms = reply.error().retry_pushback_ms();
      std::this_thread::sleep_for(std::chrono::milliseconds(asked_ms > 0 ? asked_ms : kPushbackDefaultMs));
      outbox->Again(i);
    } else {
      shared.Fail(absl::Status(static_cast<absl::StatusCode>(reply.error().code()),
                               absl::StrCat("request ", i, ": ", reply.error().message())));
    }
  };
  const auto run = [&](size_t first) {
    std::deque<size_t> mine;
    for (size_t i = first; i < requests->size(); i += static_cast<size_t>(streams)) mine.push_back(i);
    Outbox outbox(std::move(mine));
    grpc::ClientContext context;
    auto stream = stub->RankStream(&context);
    std::thread reader([&] {
      v1::RankStreamResponse reply;
      while (stream->Read(&reply)) {
        take_reply(reply, &outbox);
        if (shared.failed) context.TryCancel();
      }
      outbox.Close();
    });
    size_t i = 0;
    while (outbox.Next(&i)) {
      (*requests)[i].set_request_id(kRequestIdBase + i);
      if (shared.failed || !stream->Write((*requests)[i])) break;
    }
    stream->WritesDone();
    reader.join();
    const grpc::Status end = stream->Finish();
    if (!end.ok()) shared.Fail(FromGrpc(end));
  };
  std::vector<std::thread> threads;
  for (int s = 0; s < streams; ++s) threads.emplace_back(run, static_cast<size_t>(s));
  for (std::thread& thread : threads) thread.join();
  if (shared.status.ok() && shared.answered != requests->size()) {
    return absl::UnavailableError(
        absl::StrCat("the server answered ", shared.answered, " of ", requests->size(), " requests"));
  }
  progress(shared.answered);
  return shared.status;
}

}  // namespace backstory
