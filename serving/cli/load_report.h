// What the load commands (`bench rank`, `bench recommend`) share: the rates they go through, the ids they draw from,
// and the report.
#ifndef BACKSTORY_SERVING_CLI_LOAD_REPORT_H_
#define BACKSTORY_SERVING_CLI_LOAD_REPORT_H_

#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "serving/cli/client_options.h"
#include "serving/cli/open_loop.h"

namespace backstory {

// The rates that a report goes through.
struct LoadRates {
  std::vector<double> rates;  // requests a second; empty: find the knee
  double rate_first = 10, rate_max = 20'000, slo_ms = 50;
  int steps = 3;
  bool json = false;

  // --rate, --rate-first, --rate-max, --slo-ms, --steps, --json. `this` must outlive the parse.
  void AddTo(CLI::App* command);
};

// The lines of `file`, or if that is empty the numbers of `range` (FIRST-LAST, at most ten million). Ends the command
// with a usage error naming the file or `range_flag`.
std::vector<std::string> IdsOf(const std::string& file, const std::string& range, const char* range_flag);

// Ends the command unless the server answers within five seconds.
void WaitForServer(const ClientOptions& client);

// Measures rate by rate and prints a table, or with --json one object on standard output: machine, what is in `head`,
// the objective and the runs. `measure` may print below its row, which `to` gives it, and add to the run's object.
using MeasureRate = std::function<LoadResult(double rate)>;
using AfterRow = std::function<void(std::FILE* to, nlohmann::ordered_json* run)>;
void ReportLoad(const LoadRates& rates, const nlohmann::ordered_json& head, const std::string& what,
                const MeasureRate& measure, const AfterRow& after);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_LOAD_REPORT_H_
