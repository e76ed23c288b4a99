#include "serving/cli/synth_command.h"

#include <cstdio>
#include <memory>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "serving/cli/ingest_common.h"
#include "serving/cli/synth_files.h"

namespace backstory {
namespace {

constexpr const char* kExamples = R"(
Examples:
  backstory synth --users 100 --events-per-user 1000-100000 --seed 1 --out synthetic/
  backstory synth --users 5000 --events-per-user movielens --out synthetic/
  backstory ingest --store /data/store --namespace synthetic \
      --events synthetic/events.csv --items synthetic/items.csv

Same options, same bytes. The files say that they are synthetic in their first line; docs/reference/synth.md says what
they are fitted to. Exit codes: 0 done, 1 failed, 2 usage.)";

struct Flags {
  SynthOptions options;
  uint64_t users = 100;
  std::string lengths = "1000-100000", out;
  bool json = false;
};

void Synth(const Flags& flags) {
  SynthOptions options = flags.options;
  const absl::StatusOr<LengthRange> lengths = ParseLengths(flags.lengths);
  if (!lengths.ok()) Leave("synth", lengths.status(), kExitUsage);
  options.lengths = *lengths;
  ProgressBar progress("users");
  const auto counts = WriteSynthFiles(options, flags.users, flags.out, std::ref(progress));
  progress.Clear();
  if (!counts.ok()) Leave("synth", counts.status());
  const char* format = flags.json ? "{\"synthetic\": true, \"users\": %lu, \"items\": %lu, \"events\": %lu, "
                                    "\"exposures\": %lu, \"clicks\": %lu}\n"
                                  : "SYNTHETIC: %lu users, %lu items, %lu events (%lu exposures, %lu clicks)\n";
  std::printf(format, counts->users, counts->items, counts->events, counts->exposures, counts->clicks);
}

}  // namespace

void AddSynthCommand(CLI::App& app) {
  CLI::App* command = app.add_subcommand("synth", "Make synthetic users with long histories, for tests and load");
  auto flags = std::make_shared<Flags>();
  command->footer(kExamples);
  command->add_option("--users", flags->users, "Number of users")
      ->check(CLI::Range(uint64_t{1}, uint64_t{100'000'000}))
      ->capture_default_str();
  command->add_option("--events-per-user", flags->lengths, "N, LOW-HIGH (every doubling equally likely) or movielens")
      ->capture_default_str();
  command->add_option("--items", flags->options.items, "Size of the catalog")
      ->check(CLI::Range(uint64_t{100}, uint64_t{10'000'000}))
      ->capture_default_str();
  command->add_option("--click-rate", flags->options.click_rate, "Mean share of exposures that are clicked")
      ->check(CLI::Range(0.001, 0.4))
      ->capture_default_str();
  command->add_option("--days", flags->options.span_days_max, "Longest time a history spans")
      ->check(CLI::Range(1.0, 36500.0))
      ->capture_default_str();
  command->add_option("--seed", flags->options.seed, "Everything follows from it")->capture_default_str();
  command->add_option("--out", flags->out, "Directory for events.csv and items.csv")->required();
  command->add_flag("--json", flags->json, "Print the counts as JSON");
  command->callback([flags] { Synth(*flags); });
}

}  // namespace backstory
