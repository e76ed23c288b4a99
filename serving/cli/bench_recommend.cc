#include "serving/cli/bench_recommend.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "backstory/v1/history.grpc.pb.h"
#include "backstory/v1/retrieval.grpc.pb.h"
#include "fmt/format.h"
#include "serving/cli/client_options.h"
#include "serving/cli/exit_codes.h"
#include "serving/cli/load_report.h"
#include "serving/cli/rank_load.h"
#include "serving/rpc/rpc_metrics.h"

namespace backstory {
namespace {

struct Options {
  ClientOptions client;
  LoadRates rates;
  std::string ns, model, users_file, user_range = "1-100", item_range = "1-10000";
  uint32_t count = 20, beam = 0;
  int history = 0, channels = 2;
  double append_rate = 0, seconds = 10, warmup = 2;
  size_t in_flight_max = 4'096;
  uint64_t seed = 1;
  bool batch = false, stages = false;
};

constexpr char kExamples[] = R"(Examples:
  backstory model init-random glass-released --out models/glass-released/1
  backstory bench recommend --user-range 1-200 --history 1000 --rate 50 200 --stages
  backstory bench recommend --user-range 1-200 --append-rate 20 --slo-ms 20 --rate-first 100
--history first gives every user so many ratings of random items (ids of --item-range), once: it is for a store of its own.
Without --rate the rate is doubled until p99 or the share of OK answers breaks the objective, then the knee is narrowed.
Latency counts from the moment a request should have been sent. On one machine the generator competes with the server
for cores: pin them apart with taskset and say so beside the numbers.)";

using Clock = std::chrono::steady_clock;

constexpr int64_t kMinuteUs = 60'000'000;

int64_t NowUs() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::microseconds>(now).count();
}

class Load {
 public:
  explicit Load(const Options& options)
      : options_(options),
        users_(IdsOf(options.users_file, options.user_range, "--user-range")),
        items_(IdsOf("", options.item_range, "--item-range")),
        random_(options.seed) {
    for (int i = 0; i < std::max(1, options.channels); ++i) {
      retrieval_.push_back(v1::Retrieval::NewStub(options.client.Connect()));
    }
    history_ = v1::History::NewStub(options.client.Connect());
    for (size_t i = 0; i < kDistinct; ++i) requests_.push_back(Request(users_[random_() % users_.size()]));
  }

  // Every user has options.history ratings, a minute apart up to now, and a state.
  void Prepare() {
    for (const std::string& user : users_) {
      v1::AppendRequest append;
      append.set_namespace_(options_.ns);
      append.mutable_user()->set_user(user);
      const int64_t start_us = NowUs() - (options_.history + 1) * kMinuteUs;
      for (int i = 0; i < options_.history; ++i) AddRating(start_us + i * kMinuteUs, &append);
      v1::AppendResponse response;
      if (options_.history > 0) CheckCall(history_->Append(options_.client.Context().get(), append, &response));
      v1::RecommendResponse recommended;
      CheckCall(retrieval_[0]->Recommend(options_.client.Context().get(), Request(user), &recommended));
      if (about_.empty()) {
        about_ = fmt::format("{}/{}, beam {}", recommended.model(), recommended.version(), recommended.beam());
      }
    }
  }
  const std::string& about() const { return about_; }
  size_t users() const { return users_.size(); }

  LoadResult Run(double rate) {
    {
      std::lock_guard lock(mutex_);
      sources_.clear(), partial_ = appended_ = append_errors_ = 0;
      if (options_.stages) stages_ = std::make_unique<StageReport>();
    }
    counted_ = Clock::now() + std::chrono::microseconds(static_cast<int64_t>(options_.warmup * 1e6));
    std::atomic<bool> stop{false};
    std::thread appender([this, &stop] { Append(stop); });
    LoadResult result =
        RunOpenLoop(rate, options_.seconds, options_.warmup, options_.seed, options_.in_flight_max,
                    [this](size_t i, std::function<void(std::string)> done) { Issue(i, std::move(done)); });
    stop = true;
    appender.join();
    return result;
  }

  // Of the last Run: stages without the warm-up, the rest with it.
  void Report(std::FILE* to, nlohmann::ordered_json* run) const {
    std::lock_guard lock(mutex_);
    std::string text;
    for (const auto& [source, count] : sources_) {
      text += fmt::format(" {} {}", count, source);
      (*run)["state_sources"][source] = count;
    }
    (*run)["partial"] = partial_;
    fmt::print(to, "    states:{}; {} partial replies", text, partial_);
    if (options_.append_rate > 0) {
      fmt::print(to, "; {} events appended, {} failed", appended_, append_errors_);
      (*run)["appended"] = appended_, (*run)["append_errors"] = append_errors_;
    }
    fmt::print(to, "\n");
    if (stages_ != nullptr) stages_->Print(to);
  }

 private:
  static constexpr size_t kDistinct = 512;

  v1::RecommendRequest Request(const std::string& user) const {
    v1::RecommendRequest request;
    request.set_namespace_(options_.ns);
    request.mutable_model()->set_name(options_.model);
    request.mutable_units()->mutable_user()->set_user(user);
    request.set_count(options_.count);
    request.set_beam(options_.beam);
    request.set_stage_timings(options_.stages);
    if (options_.batch) request.set_criticality(v1::CRITICALITY_BATCH);
    return request;
  }

  void AddRating(int64_t time_us, v1::AppendRequest* append) {
    v1::Event* event = append->add_events();
    event->set_kind(v1::EVENT_KIND_ACTION);
    event->set_event_id(static_cast<uint64_t>(NowUs()) * 1'000 + next_event_++ % 1'000);
    event->set_time_us(time_us);
    event->set_item_id(std::stoull(items_[random_() % items_.size()]));
    event->set_action(v1::ACTION_TYPE_RATING);
    event->set_value(5);
  }

  // Open loop as well, at a steady pace: events of random users.
  void Append(const std::atomic<bool>& stop) {
    if (options_.append_rate <= 0) return;
    const Clock::time_point start = Clock::now();
    for (uint64_t i = 0; !stop; ++i) {
      std::this_thread::sleep_until(
          start + std::chrono::microseconds(static_cast<int64_t>(1e6 * static_cast<double>(i) / options_.append_rate)));
      v1::AppendRequest append;
      append.set_namespace_(options_.ns);
      append.mutable_user()->set_user(users_[random_() % users_.size()]);
      AddRating(NowUs(), &append);
      v1::AppendResponse response;
      const bool ok = history_->Append(options_.client.Context().get(), append, &response).ok();
      std::lock_guard lock(mutex_);
      ++(ok ? appended_ : append_errors_);
    }
  }

  void Issue(size_t i, std::function<void(std::string)> done) {
    struct Call {
      std::unique_ptr<grpc::ClientContext> context;
      v1::RecommendResponse response;
      Clock::time_point start;
    };
    auto call = std::make_shared<Call>();
    call->context = options_.client.Context();
    call->start = Clock::now();
    retrieval_[i % retrieval_.size()]->async()->Recommend(
        call->context.get(), &requests_[i % requests_.size()], &call->response,
        [this, call, done = std::move(done)](const grpc::Status& status) {
          if (status.ok()) Count(call->response, call->start);
          done(status.ok() ? std::string() : std::string(rpc::CodeName(status.error_code())));
        });
  }

  void Count(const v1::RecommendResponse& response, Clock::time_point start) {
    if (stages_ != nullptr && start >= counted_) {
      const auto total = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start);
      stages_->Add(response.timings(), total.count());
    }
    std::lock_guard lock(mutex_);
    ++sources_[response.cache().source()];
    if (response.partial()) ++partial_;
  }

  const Options& options_;
  const std::vector<std::string> users_, items_;
  std::mt19937_64 random_;  // Prepare's, then the appender's alone
  uint64_t next_event_ = 0;
  std::vector<std::unique_ptr<v1::Retrieval::Stub>> retrieval_;
  std::unique_ptr<v1::History::Stub> history_;
  std::vector<v1::RecommendRequest> requests_;
  std::string about_;
  std::unique_ptr<StageReport> stages_;  // null: not asked for
  Clock::time_point counted_;
  mutable std::mutex mutex_;
  std::map<std::string, uint64_t> sources_;                  // guarded by mutex_
  uint64_t partial_ = 0, appended_ = 0, append_errors_ = 0;  // guarded by mutex_
};

void BenchRecommend(const Options& options) {
  WaitForServer(options.client);
  Load load(options);
  load.Prepare();
  ReportLoad(
      options.rates, {{"users", load.users()}, {"history", options.history}, {"count", options.count}},
      fmt::format("{}; {} users, {} items each, {} s a rate after {} s of warm-up, seed {}", load.about(), load.users(),
                  options.count, options.seconds, options.warmup, options.seed),
      [&](double rate) { return load.Run(rate); },
      [&](std::FILE* to, nlohmann::ordered_json* run) { load.Report(to, run); });
}

}  // namespace

void AddBenchRecommend(CLI::App* bench) {
  auto options = std::make_shared<Options>();
  CLI::App* command = bench->add_subcommand("recommend", "Open-loop Poisson load of Recommend calls, and its knee");
  command->footer(kExamples);
  options->client.deadline_ms = 2'000;
  options->client.AddTo(command);
  command->add_option("--namespace", options->ns, "Namespace [default]");
  command->add_option("--model", options->model, "Generative model [the server's default]");
  command->add_option("--users-file", options->users_file, "User ids, one a line");
  command->add_option("--user-range", options->user_range, "User ids FIRST-LAST")->capture_default_str();
  command->add_option("--item-range", options->item_range, "Item ids FIRST-LAST of events that are appended")
      ->capture_default_str();
  command->add_option("--history", options->history, "Ratings to append to every user before the load starts")
      ->check(CLI::Range(0, 10'000))
      ->capture_default_str();
  command->add_option("--append-rate", options->append_rate, "Ratings a second to append to random users meanwhile")
      ->check(CLI::Range(0.0, 100'000.0))
      ->capture_default_str();
  command->add_option("--count", options->count, "Items a request")->check(CLI::Range(1, 1'000))->capture_default_str();
  command->add_option("--beam", options->beam, "Semantic IDs to follow [the model's]")->check(CLI::Range(0, 1'024));
  command->add_flag("--batch", options->batch, "Send with criticality BATCH");
  command->add_flag("--stages", options->stages,
                    "Ask for stage timings and print where the time went, also of the tail");
  command->add_option("--seconds", options->seconds, "Duration of each rate")->capture_default_str();
  command->add_option("--warmup", options->warmup, "Seconds before counting starts")->capture_default_str();
  command->add_option("--channels", options->channels, "Connections")->capture_default_str();
  command->add_option("--in-flight-max", options->in_flight_max, "Requests in flight at most")->capture_default_str();
  command->add_option("--seed", options->seed, "Seed of arrivals and requests")->capture_default_str();
  options->rates.AddTo(command);
  command->callback([options] { BenchRecommend(*options); });
}

}  // namespace backstory
