#include "serving/cli/bench_rank.h"

#include <charconv>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "CLI/CLI.hpp"
#include "fmt/format.h"
#include "serving/cli/exit_codes.h"
#include "serving/cli/load_report.h"
#include "serving/cli/rank_load.h"

namespace backstory {
namespace {

struct Options {
  RankLoadOptions load;
  std::string users_file, user_range = "1-100", user_prefix, items_file, item_range = "1-10000";
  LoadRates rates;
  double hit_rate = 1;
  size_t resident_users = 0;
  bool prime = false;
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

void Complete(Options* options) {
  RankLoadOptions& load = options->load;
  load.users = IdsOf(options->users_file, options->user_range, "--user-range");
  for (std::string& user : load.users) user = options->user_prefix + user;
  const auto items = IdsOf(options->items_file, options->item_range, "--item-range");
  for (const std::string& item : items) {
    uint64_t& id = load.items.emplace_back(0);
    const auto [end, error] = std::from_chars(item.data(), item.data() + item.size(), id);
    if (error != std::errc() || end != item.data() + item.size()) {
      FailCommand(kExitUsage, options->items_file + ": \"" + item + "\" is no item id");
    }
  }
  if (options->resident_users > load.users.size()) {
    FailCommand(kExitUsage,
                fmt::format("--resident-users is {}, there are {} users", options->resident_users, load.users.size()));
  }
  if (options->resident_users > 0) load.rotated_users = load.users.size() - options->resident_users;
  load.rotated_share = 1 - options->hit_rate;
  if (load.rotated_share > 0 && load.rotated_users == 0) {
    FailCommand(kExitUsage, "--hit-rate below 1 needs --resident-users below the number of users");
  }
}

void BenchRank(Options options) {
  Complete(&options);
  const RankLoad load(options.load);
  WaitForServer(options.load.client);
  if (options.prime) load.Prime();
  std::unique_ptr<StageReport> stages;
  ReportLoad(
      options.rates, {{"candidates", options.load.candidates}},
      fmt::format("{} candidates, {} s a rate after {} s of warm-up, seed {}", options.load.candidates,
                  options.load.seconds, options.load.warmup, options.load.seed),
      [&](double rate) {
        stages = std::make_unique<StageReport>();
        return load.Run(rate, options.load.stages ? stages.get() : nullptr);
      },
      [&](std::FILE* to, nlohmann::ordered_json*) { stages->Print(to); });
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
  options->rates.AddTo(command);
  command->add_option("--seconds", load.seconds, "Duration of each rate")->capture_default_str();
  command->add_option("--warmup", load.warmup, "Seconds before counting starts")->capture_default_str();
  command->add_option("--channels", load.channels, "Connections")->capture_default_str();
  command->add_option("--in-flight-max", load.in_flight_max, "Requests in flight at most")->capture_default_str();
  command->add_option("--seed", load.seed, "Seed of arrivals and requests")->capture_default_str();
  command->add_flag("--batch", load.batch, "Send with criticality BATCH");
  command->add_flag("--stages", load.stages, "Ask for stage timings and print where the time went, also of the tail");
  command->callback([options] { BenchRank(*options); });
}

}  // namespace backstory
