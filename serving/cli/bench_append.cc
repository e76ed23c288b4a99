#include "serving/cli/bench_append.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <iostream>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "backstory/v1/history.grpc.pb.h"
#include "fmt/format.h"
#include "serving/cli/client_options.h"
#include "serving/cli/exit_codes.h"
#include "serving/cli/latency_histogram.h"
#include "serving/cli/machine.h"

namespace backstory {
namespace {

struct Options {
  ClientOptions client;
  std::string ns = "bench";
  int streams = 4, window = 16, batch = 500, users_per_batch = 50, users = 10'000;
  double seconds = 10;
  uint64_t seed = 1;
  bool buffered = false, json = false;
};

constexpr char kExamples[] = R"(Examples:
  backstory bench append --seconds 10
  backstory bench append --streams 8 --batch 1000 --buffered --json
A closed loop: every stream keeps --window batches unacknowledged. Writes random users into namespace "bench" of the
server: do not run it against a store you want to keep small.)";

using Clock = std::chrono::steady_clock;

int64_t WallMicros() {
  return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// One stream: this thread writes, a second one reads acks.
class Stream {
 public:
  Stream(const Options& options, int index)
      : options_(options), random_(options.seed * 1000 + static_cast<uint64_t>(index)), next_id_(random_() ^ (static_cast<uint64_t>(WallMicros()) << 20)) {}  // another run, other ids

  void Run(Clock::time_point end) {
    auto stub = v1::History::NewStub(options_.client.Connect());
    grpc::ClientContext context;
    auto stream = stub->AppendStream(&context);
    std::thread reader([&] { ReadAcks(stream.get()); });
    while (Clock::now() < end) {
      const v1::AppendStreamRequest request = NextBatch();
      {
        std::unique_lock lock(mutex_);
        room_.wait(lock, [&] { return closed_ || sent_.size() < static_cast<size_t>(options_.window); });
        if (closed_) break;
        sent_.push_back(Clock::now());
      }
      if (!stream->Write(request)) break;
    }
    stream->WritesDone();
    reader.join();
    status = stream->Finish();
  }

  uint64_t acknowledged = 0, not_accepted = 0;
  std::string first_error;
  LatencyHistogram latency;
  grpc::Status status;

 private:
  v1::AppendStreamRequest NextBatch() {
    v1::AppendStreamRequest request;
    const int64_t now_us = WallMicros();
    const int users = std::min(options_.users_per_batch, options_.batch);
    for (int u = 0; u < users; ++u) {
      auto* part = request.add_users();
      part->set_namespace_(options_.ns);
      part->mutable_user()->set_user_id(random_() % static_cast<uint64_t>(options_.users));
      part->set_durability(options_.buffered ? v1::DURABILITY_BUFFERED : v1::DURABILITY_SYNCED);
      for (int i = u; i < options_.batch; i += users) {
        auto* event = part->add_events();
        event->set_kind(v1::EVENT_KIND_EXPOSURE);
        event->set_event_id(++next_id_);
        event->set_time_us(now_us);
        event->set_item_id(random_() % 100'000);
        event->set_position(static_cast<uint32_t>(i));
      }
    }
    return request;
  }

  void ReadAcks(grpc::ClientReaderWriter<v1::AppendStreamRequest, v1::AppendStreamResponse>* stream) {
    v1::AppendStreamResponse ack;
    while (stream->Read(&ack)) {
      std::lock_guard lock(mutex_);
      latency.Add(std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - sent_.front()).count());
      sent_.pop_front();
      if (ack.has_error() && first_error.empty()) first_error = ack.error().message();
      for (const auto& user : ack.users()) {
        acknowledged += user.accepted();
        not_accepted += user.duplicate() + user.conflict() + user.rejected();
      }
      room_.notify_one();
    }
    std::lock_guard lock(mutex_);
    closed_ = true;
    room_.notify_one();
  }

  const Options& options_;
  std::mt19937_64 random_;
  uint64_t next_id_;
  std::mutex mutex_;
  std::condition_variable room_;
  std::deque<Clock::time_point> sent_;  // guarded by mutex_
  bool closed_ = false;                 // guarded by mutex_
};

void BenchAppend(const Options& options) {
  std::vector<std::unique_ptr<Stream>> streams;
  for (int i = 0; i < options.streams; ++i) streams.push_back(std::make_unique<Stream>(options, i));
  const Clock::time_point start = Clock::now();
  const Clock::time_point end = start + std::chrono::microseconds(static_cast<int64_t>(options.seconds * 1e6));
  std::vector<std::thread> threads;
  for (auto& stream : streams) threads.emplace_back([&stream, end] { stream->Run(end); });
  for (std::thread& thread : threads) thread.join();
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  uint64_t acknowledged = 0, not_accepted = 0;
  LatencyHistogram latency;
  for (const auto& stream : streams) {
    CheckCall(stream->status);
    if (!stream->first_error.empty()) FailCommand(kExitFailed, stream->first_error);
    acknowledged += stream->acknowledged;
    not_accepted += stream->not_accepted;
    latency.Merge(stream->latency);
  }
  const auto ms = [&](double quantile) { return 1e-3 * static_cast<double>(latency.QuantileUs(quantile)); };
  const double rate = static_cast<double>(acknowledged) / seconds;
  if (options.json) {
    nlohmann::ordered_json out;
    out["machine"] = MachineLine();
    out["durability"] = options.buffered ? "BUFFERED" : "SYNCED";
    out["streams"] = options.streams;
    out["batch"] = options.batch;
    out["events_per_s"] = rate;
    out["accepted"] = acknowledged;
    out["not_accepted"] = not_accepted;
    out["ack_p50_ms"] = ms(0.5);
    out["ack_p99_ms"] = ms(0.99);
    std::cout << out.dump() << "\n";
    return;
  }
  fmt::print("{}; {} streams, {} events a batch over {} users, window {}, {}\n", MachineLine(), options.streams,
             options.batch, options.users_per_batch, options.window, options.buffered ? "BUFFERED" : "SYNCED");
  fmt::print("{:.0f} events/s acknowledged ({} in {:.1f} s, {} not accepted); ack p50 {:.2f} ms, p99 {:.2f} ms\n", rate,
             acknowledged, seconds, not_accepted, ms(0.5), ms(0.99));
}

}  // namespace

void AddBenchAppend(CLI::App* bench) {
  auto options = std::make_shared<Options>();
  CLI::App* command = bench->add_subcommand("append", "Events a second that AppendStream acknowledges");
  command->footer(kExamples);
  options->client.AddTo(command);
  command->add_option("--namespace", options->ns, "Namespace to write into")->capture_default_str();
  command->add_option("--streams", options->streams, "Streams")->check(CLI::Range(1, 256))->capture_default_str();
  command->add_option("--window", options->window, "Unacknowledged batches a stream")->check(CLI::Range(1, 1024));
  command->add_option("--batch", options->batch, "Events a batch")->check(CLI::Range(1, 10'000))->capture_default_str();
  command->add_option("--users-per-batch", options->users_per_batch, "Users a batch")->check(CLI::Range(1, 10'000));
  command->add_option("--users", options->users, "Distinct users")->check(CLI::Range(1, 100'000'000));
  command->add_option("--seconds", options->seconds, "Duration")->capture_default_str();
  command->add_option("--seed", options->seed, "Seed")->capture_default_str();
  command->add_flag("--buffered", options->buffered, "Ask for BUFFERED instead of SYNCED acks");
  command->add_flag("--json", options->json, "Print as JSON");
  command->callback([options] { BenchAppend(*options); });
}

}  // namespace backstory
