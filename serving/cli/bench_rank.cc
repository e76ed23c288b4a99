#include "serving/cli/bench_rank.h"

#include <charconv>
#include <chrono>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "CLI/CLI.hpp"
#include "fmt/format.h"
#include "serving/cli/exit_codes.h"
#include "serving/cli/machine.h"
#include "serving/cli/rank_load.h"

namespace backstory {
namespace {

struct Options {
  RankLoadOptions load;
  std::string users_file, user_range = "1-100", user_prefix, items_file, item_range = "1-10000";
  std::vector<double> rates;
  double rate_first = 10, rate_max = 20'000, slo_ms = 50, hit_rate = 1;
  size_t resident_users = 0;
  int steps = 3;
  bool json = false, prime = false;
};

constexpr char kExamples[] = R"(Examples:
  backstory bench rank --namespace movielens --user-range 1-610 --item-range 1-9000 --rate 100
  backstory bench rank --users-file users.txt --candidates 1000 --slo-ms 20 --json
  backstory bench rank --user-prefix synthetic- --user-range 1-1000 --resident-users 800 --hit-rate 0.9 --prime \
      --candidates 2048 --rate 500 --rate 1000 --stages
Without --rate the rate is doubled until p99 or the share of OK answers breaks the objective, then the knee is narrowed.
Latency counts from the moment a request should have been sent. On one machine the generator competes with the server
for cores: pin them apart with taskset and say so beside the numbers.
--resident-users N with --hit-rate H: H of the requests go to the first N users, at random, the others to the rest of
the users in rotation. A server that has room for little more than N states then finds about H of them; whether it did,
its metrics say (backstory_state_total, backstory_device_state_*_total). tests/bench/gpu/grpc_bench.sh has a whole run.)";

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

void Complete(Options* options) {
  RankLoadOptions& load = options->load;
  load.users = options->users_file.empty() ? Range(options->user_range, "--user-range") : Lines(options->users_file);
  for (std::string& user : load.users) user = options->user_prefix + user;
  const auto items = options->items_file.empty() ? Range(options->item_range, "--item-range") : Lines(options->items_file);
  for (const std::string& item : items) {
    uint64_t& id = load.items.emplace_back(0);
    const auto [end, error] = std::from_chars(item.data(), item.data() + item.size(), id);
    if (error != std::errc() || end != item.data() + item.size()) {
      FailCommand(kExitUsage, options->items_file + ": \"" + item + "\" is no item id");
    }
  }
  if (options->resident_users > load.users.size()) {
    FailCommand(kExitUsage, fmt::format("--resident-users is {}, there are {} users", options->resident_users,
                                        load.users.size()));
  }
  if (options->resident_users > 0) load.rotated_users = load.users.size() - options->resident_users;
  load.rotated_share = 1 - options->hit_rate;
  if (load.rotated_share > 0 && load.rotated_users == 0) {
    FailCommand(kExitUsage, "--hit-rate below 1 needs --resident-users below the number of users");
  }
}

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

void BenchRank(Options options) {
  Complete(&options);
  const RankLoad load(options.load);
  {
    auto channel = options.load.client.Connect();
    if (!channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(5))) {
      FailCommand(kExitUnavailable, "no server answers at " + options.load.client.server);
    }
  }
  nlohmann::ordered_json out;
  out["machine"] = MachineLine();
  out["candidates"] = options.load.candidates;
  out["slo_ms"] = options.slo_ms;
  std::FILE* table = options.json ? stderr : stdout;
  fmt::print(table, "{}; {} candidates, {} s a rate after {} s of warm-up, seed {}\n", MachineLine(),
             options.load.candidates, options.load.seconds, options.load.warmup, options.load.seed);
  if (options.prime) load.Prime();
  PrintHeader(table);
  const auto measure = [&](double rate) {
    StageReport stages;
    LoadResult result = load.Run(rate, options.load.stages ? &stages : nullptr);
    PrintRow(table, result);
    stages.Print(table);
    std::fflush(table);
    return result;
  };
  for (const double rate : options.rates) out["runs"].push_back(ToJson(measure(rate)));
  if (options.rates.empty()) {
    const KneeReport report = FindKnee(options.rate_first, options.rate_max, options.slo_ms, options.steps, measure);
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
  RankLoadOptions& load = options->load;
  load.client.deadline_ms = 2'000;
  load.client.AddTo(command);
  command->add_option("--namespace", load.ns, "Namespace [default]");
  command->add_option("--model", load.model, "Model [the server's default]");
  command->add_option("--users-file", options->users_file, "User ids, one a line");
  command->add_option("--user-range", options->user_range, "User ids FIRST-LAST")->capture_default_str();
  command->add_option("--user-prefix", options->user_prefix, "Put before every user id");
  command->add_option("--resident-users", options->resident_users, "Users drawn at random, the rest rotates [all]");
  command->add_option("--hit-rate", options->hit_rate, "Share of requests for --resident-users")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command->add_flag("--prime", options->prime, "Rank once for every resident user before the first rate");
  command->add_option("--items-file", options->items_file, "Item ids, one a line");
  command->add_option("--item-range", options->item_range, "Item ids FIRST-LAST")->capture_default_str();
  command->add_option("--candidates", load.candidates, "Candidates a request")
      ->check(CLI::Range(1, 10'000))
      ->capture_default_str();
  command->add_option("--rate", options->rates, "Requests a second, one or several rates in turn [find the knee]")
      ->check(CLI::PositiveNumber);
  command->add_option("--rate-first", options->rate_first, "First rate of the sweep")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--rate-max", options->rate_max, "Highest rate of the sweep")->capture_default_str();
  command->add_option("--seconds", load.seconds, "Duration of each rate")->capture_default_str();
  command->add_option("--warmup", load.warmup, "Seconds before counting starts")->capture_default_str();
  command->add_option("--slo-ms", options->slo_ms, "p99 objective of the knee")->capture_default_str();
  command->add_option("--steps", options->steps, "Times the knee is narrowed")->capture_default_str();
  command->add_option("--channels", load.channels, "Connections")->capture_default_str();
  command->add_option("--in-flight-max", load.in_flight_max, "Requests in flight at most")->capture_default_str();
  command->add_option("--seed", load.seed, "Seed of arrivals and requests")->capture_default_str();
  command->add_flag("--batch", load.batch, "Send with criticality BATCH");
  command->add_flag("--stages", load.stages, "Ask for stage timings and print where the time went, also of the tail");
  command->add_flag("--json", options->json, "Print the report as JSON; the table goes to standard error");
  command->callback([options] { BenchRank(*options); });
}

}  // namespace backstory
