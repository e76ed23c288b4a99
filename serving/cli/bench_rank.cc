#include "serving/cli/bench_rank.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "backstory/v1/ranking.grpc.pb.h"
#include "fmt/format.h"
#include "serving/cli/client_options.h"
#include "serving/cli/exit_codes.h"
#include "serving/cli/machine.h"
#include "serving/cli/open_loop.h"
#include "serving/rpc/rpc_metrics.h"

namespace backstory {
namespace {

struct Options {
  ClientOptions client;
  std::string ns, model, users_file, user_range = "1-100", items_file, item_range = "1-10000";
  double rate = 0, rate_max = 20'000, seconds = 10, warmup = 2, slo_ms = 50;
  int candidates = 200, channels = 2, steps = 3;
  size_t in_flight_max = 4'096;
  uint64_t seed = 1;
  bool json = false, batch = false, quiet = false;
};

constexpr char kExamples[] = R"(Examples:
  backstory bench rank --namespace movielens --user-range 1-610 --item-range 1-9000 --rate 100
  backstory bench rank --users-file users.txt --candidates 1000 --slo-ms 20 --json
Without --rate the rate is doubled until p99 or the share of OK answers breaks the objective, then the knee is narrowed.
Latency counts from the moment a request should have been sent. On one machine the generator competes with the server
for cores: pin them apart with taskset and say so beside the numbers.)";

std::vector<std::string> Range(const std::string& text, const char* flag) {
  const size_t dash = text.find('-');
  uint64_t first = 0, last = 0;
  try {
    first = std::stoull(text.substr(0, dash));
    last = dash == std::string::npos ? first : std::stoull(text.substr(dash + 1));
  } catch (const std::exception&) {
    FailCommand(kExitUsage, fmt::format("{} must be FIRST-LAST, is {}", flag, text));
  }
  if (last < first || last - first > 10'000'000) FailCommand(kExitUsage, fmt::format("{} is empty or too wide", flag));
  std::vector<std::string> out;
  for (uint64_t id = first; id <= last; ++id) out.push_back(std::to_string(id));
  return out;
}

std::vector<std::string> Lines(const std::string& path) {
  std::ifstream file(path);
  if (!file) FailCommand(kExitUsage, "cannot read " + path);
  std::vector<std::string> out;
  for (std::string line; std::getline(file, line);) {
    if (!line.empty()) out.push_back(line);
  }
  if (out.empty()) FailCommand(kExitUsage, path + " is empty");
  return out;
}

// Requests are made before the clock starts; the loop only sends them.
std::vector<v1::RankRequest> Requests(const Options& options) {
  constexpr size_t kDistinct = 512;
  const auto users = options.users_file.empty() ? Range(options.user_range, "--user-range") : Lines(options.users_file);
  const auto items = options.items_file.empty() ? Range(options.item_range, "--item-range") : Lines(options.items_file);
  std::mt19937_64 random(options.seed);
  std::vector<v1::RankRequest> requests(kDistinct);
  for (v1::RankRequest& request : requests) {
    request.set_namespace_(options.ns);
    request.mutable_model()->set_name(options.model);
    request.mutable_units()->mutable_user()->set_user(users[random() % users.size()]);
    if (options.batch) request.set_criticality(v1::CRITICALITY_BATCH);
    for (int i = 0; i < options.candidates; ++i) {
      request.mutable_candidates()->add_item_ids(std::stoull(items[random() % items.size()]));
    }
  }
  return requests;
}

class Load {
 public:
  explicit Load(const Options& options) : options_(options), requests_(Requests(options)) {
    for (int i = 0; i < std::max(1, options.channels); ++i) {
      stubs_.push_back(v1::Ranking::NewStub(options.client.Connect()));
    }
  }

  LoadResult Run(double rate) {
    return RunOpenLoop(rate, options_.seconds, options_.warmup, options_.seed, options_.in_flight_max,
                       [this](size_t i, std::function<void(std::string)> done) { Issue(i, std::move(done)); });
  }

 private:
  void Issue(size_t i, std::function<void(std::string)> done) {
    struct Call {
      std::unique_ptr<grpc::ClientContext> context;
      v1::RankResponse response;
    };
    auto call = std::make_shared<Call>();
    call->context = options_.client.Context();
    stubs_[i % stubs_.size()]->async()->Rank(
        call->context.get(), &requests_[i % requests_.size()], &call->response,
        [call, done = std::move(done)](const grpc::Status& status) {
          done(status.ok() ? std::string() : std::string(rpc::CodeName(status.error_code())));
        });
  }

  const Options& options_;
  const std::vector<v1::RankRequest> requests_;
  std::vector<std::unique_ptr<v1::Ranking::Stub>> stubs_;
};

nlohmann::ordered_json ToJson(const LoadResult& result) {
  const auto ms = [&](double quantile) { return 1e-3 * static_cast<double>(result.latency.QuantileUs(quantile)); };
  nlohmann::ordered_json out;
  out["offered_per_s"] = result.offered_per_s;
  out["goodput_per_s"] = result.goodput_per_s;
  out["arrivals"] = result.arrivals;
  out["ok"] = result.ok;
  out["errors"] = result.errors;
  out["p50_ms"] = ms(0.5);
  out["p90_ms"] = ms(0.9);
  out["p99_ms"] = ms(0.99);
  out["p99_9_ms"] = ms(0.999);
  out["max_ms"] = 1e-3 * static_cast<double>(result.latency.max_us());
  out["generator_late_p99_ms"] = 1e-3 * static_cast<double>(result.late_start_p99_us);
  return out;
}

void PrintRow(std::FILE* to, const LoadResult& result) {
  const auto ms = [&](double quantile) { return 1e-3 * static_cast<double>(result.latency.QuantileUs(quantile)); };
  std::string errors;
  for (const auto& [name, count] : result.errors) errors += fmt::format(" {} {}", count, name);
  fmt::print(to, "{:>10.1f} {:>10.1f} {:>9.2f} {:>9.2f} {:>9.2f} {:>9.2f} {:>9.2f} {:>9.2f} {}\n", result.offered_per_s,
             result.goodput_per_s, ms(0.5), ms(0.9), ms(0.99), ms(0.999),
             1e-3 * static_cast<double>(result.latency.max_us()), 1e-3 * static_cast<double>(result.late_start_p99_us),
             errors);
}

void PrintHeader(std::FILE* to) {
  fmt::print(to, "{:>10} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {}\n", "offered/s", "ok/s", "p50 ms", "p90 ms",
             "p99 ms", "p99.9 ms", "max ms", "gen late", "errors");
}

void BenchRank(const Options& options) {
  Load load(options);
  {
    auto channel = options.client.Connect();
    if (!channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(5))) {
      FailCommand(kExitUnavailable, "no server answers at " + options.client.server);
    }
  }
  nlohmann::ordered_json out;
  out["machine"] = MachineLine();
  out["candidates"] = options.candidates;
  out["slo_ms"] = options.slo_ms;
  std::FILE* table = options.json ? stderr : stdout;
  fmt::print(table, "{}; {} candidates, {} s a rate after {} s of warm-up, seed {}\n", MachineLine(), options.candidates,
             options.seconds, options.warmup, options.seed);
  PrintHeader(table);
  const auto measure = [&](double rate) {
    LoadResult result = load.Run(rate);
    PrintRow(table, result);
    return result;
  };
  if (options.rate > 0) {
    out["runs"].push_back(ToJson(measure(options.rate)));
  } else {
    const KneeReport report = FindKnee(10, options.rate_max, options.slo_ms, options.steps, measure);
    for (const LoadResult& run : report.runs) out["runs"].push_back(ToJson(run));
    out["knee_per_s"] = report.knee_per_s;
    fmt::print(table, "knee: {:.1f} requests/s with p99 <= {} ms and >= 99 % OK\n", report.knee_per_s, options.slo_ms);
  }
  if (options.json) std::cout << out.dump() << "\n";
}

}  // namespace

void AddBenchRank(CLI::App* bench) {
  auto options = std::make_shared<Options>();
  CLI::App* command = bench->add_subcommand("rank", "Open-loop Poisson load of Rank calls, and its knee");
  command->footer(kExamples);
  options->client.deadline_ms = 2'000;
  options->client.AddTo(command);
  command->add_option("--namespace", options->ns, "Namespace [default]");
  command->add_option("--model", options->model, "Model [the server's default]");
  command->add_option("--users-file", options->users_file, "User ids, one a line");
  command->add_option("--user-range", options->user_range, "User ids FIRST-LAST")->capture_default_str();
  command->add_option("--items-file", options->items_file, "Item ids, one a line");
  command->add_option("--item-range", options->item_range, "Item ids FIRST-LAST")->capture_default_str();
  command->add_option("--candidates", options->candidates, "Candidates a request")
      ->check(CLI::Range(1, 10'000))
      ->capture_default_str();
  command->add_option("--rate", options->rate, "Requests a second [find the knee]")->check(CLI::PositiveNumber);
  command->add_option("--rate-max", options->rate_max, "Highest rate of the sweep")->capture_default_str();
  command->add_option("--seconds", options->seconds, "Duration of each rate")->capture_default_str();
  command->add_option("--warmup", options->warmup, "Seconds before counting starts")->capture_default_str();
  command->add_option("--slo-ms", options->slo_ms, "p99 objective of the knee")->capture_default_str();
  command->add_option("--steps", options->steps, "Times the knee is narrowed")->capture_default_str();
  command->add_option("--channels", options->channels, "Connections")->capture_default_str();
  command->add_option("--in-flight-max", options->in_flight_max, "Requests in flight at most")->capture_default_str();
  command->add_option("--seed", options->seed, "Seed of arrivals and requests")->capture_default_str();
  command->add_flag("--batch", options->batch, "Send with criticality BATCH");
  command->add_flag("--json", options->json, "Print the report as JSON; the table goes to standard error");
  command->callback([options] { BenchRank(*options); });
}

}  // namespace backstory
