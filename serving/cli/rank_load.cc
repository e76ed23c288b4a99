#include "serving/cli/rank_load.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <random>
#include <thread>

#include "fmt/format.h"
#include "serving/cli/exit_codes.h"
#include "serving/cli/latency_histogram.h"
#include "serving/rpc/rpc_metrics.h"

namespace backstory {
namespace {

using Clock = std::chrono::steady_clock;

int64_t MicrosSince(Clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start).count();
}

// SplitMix64 of an arrival: what it asks for depends on its number alone.
uint64_t Mixed(uint64_t z) {
  z += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

}  // namespace

size_t StageReport::IndexOf(const std::string& stage) {
  const auto found = std::find(stages_.begin(), stages_.end(), stage);
  if (found == stages_.end()) {
    stages_.push_back(stage);
    return stages_.size() - 1;
  }
  return static_cast<size_t>(found - stages_.begin());
}

void StageReport::Add(const google::protobuf::RepeatedPtrField<v1::StageTiming>& timings, int64_t total_us) {
  std::lock_guard lock(mutex_);
  Request request{.total_us = total_us};
  int64_t outside_us = total_us;
  const auto put = [&](const std::string& stage, int64_t us) {
    const size_t at = IndexOf(stage);
    if (request.stage_us.size() <= at) request.stage_us.resize(at + 1);
    request.stage_us[at] += us;
  };
  for (const auto& timing : timings) {
    put(timing.stage(), timing.duration_us());
    outside_us -= timing.duration_us();
  }
  put("outside", outside_us);
  requests_.push_back(std::move(request));
}

void StageReport::Print(std::FILE* to) const {
  std::lock_guard lock(mutex_);
  if (requests_.empty()) return;
  std::vector<const Request*> slowest;
  for (const Request& request : requests_) slowest.push_back(&request);
  std::sort(slowest.begin(), slowest.end(),
            [](const Request* a, const Request* b) { return a->total_us > b->total_us; });
  slowest.resize((slowest.size() + 99) / 100);
  fmt::print(to, "    {:<10} {:>9} {:>9} {:>9} {:>9} {:>14}\n", "stage, ms", "mean", "p50", "p99", "max",
             "slowest 1 %");
  for (size_t s = 0; s < stages_.size(); ++s) {
    const auto of = [s](const Request& request) { return s < request.stage_us.size() ? request.stage_us[s] : 0; };
    LatencyHistogram all;
    double slow = 0;
    for (const Request& request : requests_) all.Add(std::max<int64_t>(0, of(request)));
    for (const Request* request : slowest) slow += static_cast<double>(of(*request));
    fmt::print(to, "    {:<10} {:>9.3f} {:>9.3f} {:>9.3f} {:>9.3f} {:>14.3f}\n", stages_[s], all.mean_us() * 1e-3,
               1e-3 * static_cast<double>(all.QuantileUs(0.5)), 1e-3 * static_cast<double>(all.QuantileUs(0.99)),
               1e-3 * static_cast<double>(all.max_us()), slow * 1e-3 / static_cast<double>(slowest.size()));
  }
}

RankLoad::RankLoad(const RankLoadOptions& options) : options_(options) {
  constexpr size_t kDistinct = 512;
  per_user_ = std::max<size_t>(1, kDistinct / options.users.size());
  std::mt19937_64 random(options.seed);
  requests_.reserve(per_user_ * options.users.size());
  for (const std::string& user : options.users) {
    for (size_t i = 0; i < per_user_; ++i) {
      v1::RankRequest& request = requests_.emplace_back();
      request.set_namespace_(options.ns);
      request.mutable_model()->set_name(options.model);
      request.mutable_units()->mutable_user()->set_user(user);
      if (options.batch) request.set_criticality(v1::CRITICALITY_BATCH);
      request.set_stage_timings(options.stages);
      request.mutable_candidates()->mutable_item_ids()->Reserve(options.candidates);
      for (int c = 0; c < options.candidates; ++c) {
        request.mutable_candidates()->add_item_ids(options.items[random() % options.items.size()]);
      }
    }
  }
  for (int i = 0; i < std::max(1, options.channels); ++i) {
    stubs_.push_back(v1::Ranking::NewStub(options.client.Connect()));
  }
}

size_t RankLoad::RequestOf(size_t arrival) const {
  const uint64_t mixed = Mixed(options_.seed << 32 ^ arrival);
  const size_t drawn = options_.users.size() - options_.rotated_users;
  const double uniform = static_cast<double>(mixed >> 11) * 0x1p-53;
  size_t user = drawn == 0 ? 0 : Mixed(mixed) % drawn;
  if (options_.rotated_users > 0 && uniform < options_.rotated_share) {
    // Rotated arrivals are rotated_share of all, so this goes through the list about once in rotated_users of them.
    user = drawn + static_cast<size_t>(static_cast<double>(arrival) * options_.rotated_share) % options_.rotated_users;
  }
  return user * per_user_ + (mixed >> 3) % per_user_;
}

void RankLoad::Issue(size_t request, StageReport* stages, std::function<void(std::string)> done) const {
  struct Call {
    std::unique_ptr<grpc::ClientContext> context;
    v1::RankResponse response;
    Clock::time_point start;
  };
  auto call = std::make_shared<Call>();
  call->context = options_.client.Context();
  call->start = Clock::now();
  stubs_[request % stubs_.size()]->async()->Rank(
      call->context.get(), &requests_[request], &call->response,
      [call, stages, done = std::move(done)](const grpc::Status& status) {
        if (status.ok() && stages != nullptr) stages->Add(call->response.timings(), MicrosSince(call->start));
        done(status.ok() ? std::string() : std::string(rpc::CodeName(status.error_code())));
      });
}

void RankLoad::Prime() const {
  constexpr size_t kInFlight = 8;
  constexpr int kRefusalsMax = 1'000;
  constexpr std::chrono::milliseconds kPause{20};
  std::mutex mutex;
  std::condition_variable changed;
  size_t in_flight = 0;
  int refusals = 0;
  std::string failed;
  std::deque<size_t> waiting;
  for (size_t u = 0; u < options_.users.size() - options_.rotated_users; ++u) waiting.push_back(u);
  std::unique_lock lock(mutex);
  while (failed.empty()) {
    changed.wait(lock,
                 [&] { return !failed.empty() || in_flight == 0 || (!waiting.empty() && in_flight < kInFlight); });
    if (!failed.empty() || waiting.empty()) break;
    const size_t user = waiting.front();
    waiting.pop_front();
    ++in_flight;
    lock.unlock();
    Issue(user * per_user_, nullptr, [&, user](const std::string& error) {
      const bool refused = error == "UNAVAILABLE";
      if (refused) std::this_thread::sleep_for(kPause);
      std::lock_guard guard(mutex);
      if (refused && ++refusals <= kRefusalsMax) {
        waiting.push_back(user);
      } else if (!error.empty()) {
        failed = error;
      }
      --in_flight;
      changed.notify_all();
    });
    lock.lock();
  }
  changed.wait(lock, [&] { return in_flight == 0; });
  if (!failed.empty()) FailCommand(kExitFailed, "a request before the first rate was answered " + failed);
}

LoadResult RankLoad::Run(double rate, StageReport* stages) const {
  const Clock::time_point counted =
      Clock::now() + std::chrono::microseconds(static_cast<int64_t>(options_.warmup * 1e6));
  return RunOpenLoop(rate, options_.seconds, options_.warmup, options_.seed, options_.in_flight_max,
                     [&](size_t i, std::function<void(std::string)> done) {
                       Issue(RequestOf(i), Clock::now() < counted ? nullptr : stages, std::move(done));
                     });
}

}  // namespace backstory
