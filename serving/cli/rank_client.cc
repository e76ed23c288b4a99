#include "serving/cli/rank_client.h"

#include <atomic>
#include <mutex>
#include <thread>

#include "absl/strings/str_cat.h"

namespace backstory {
namespace {

// What the streams of one RankAll share.
struct Shared {
  std::mutex mutex;
  absl::Status status;              // guarded by mutex: the first error
  size_t answered = 0;              // guarded by mutex
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
};

absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace

absl::Status RankAll(v1::Ranking::Stub* stub, std::vector<v1::RankRequest>* requests, int streams,
                     const std::function<absl::Status(size_t, const v1::RankResponse&)>& done,
                     const std::function<void(size_t)>& progress) {
  Shared shared;
  const auto read_all = [&](grpc::ClientContext* context, auto* stream) {
    v1::RankStreamResponse reply;
    while (stream->Read(&reply)) {
      const size_t i = reply.request_id() - 1;
      if (i >= requests->size()) {
        shared.Fail(absl::InternalError(absl::StrCat("reply to unknown request_id ", reply.request_id())));
      } else if (reply.has_error()) {
        shared.Fail(absl::Status(static_cast<absl::StatusCode>(reply.error().code()),
                                 absl::StrCat("request ", i, ": ", reply.error().message())));
      } else {
        shared.Take([&] { return done(i, reply.response()); }, progress);
      }
      if (shared.failed) context->TryCancel();
    }
  };
  const auto run = [&](size_t first) {
    grpc::ClientContext context;
    auto stream = stub->RankStream(&context);
    std::thread reader([&] { read_all(&context, stream.get()); });
    for (size_t i = first; i < requests->size() && !shared.failed; i += static_cast<size_t>(streams)) {
      (*requests)[i].set_request_id(i + 1);
      if (!stream->Write((*requests)[i])) break;
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
