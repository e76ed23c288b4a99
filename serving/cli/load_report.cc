#include "serving/cli/load_report.h"

#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>

#include "CLI/CLI.hpp"
#include "fmt/format.h"
#include "serving/cli/exit_codes.h"
#include "serving/cli/machine.h"

namespace backstory {
namespace {

constexpr uint64_t kRangeMax = 10'000'000;

std::vector<std::string> RangeOf(const std::string& text, const char* flag) {
  const size_t dash = text.find('-');
  uint64_t first = 0, last = 0;
  try {
    first = std::stoull(text.substr(0, dash));
    last = dash == std::string::npos ? first : std::stoull(text.substr(dash + 1));
  } catch (const std::exception&) {
    FailCommand(kExitUsage, fmt::format("{} must be FIRST-LAST, is {}", flag, text));
  }
  if (last < first || last - first > kRangeMax) FailCommand(kExitUsage, fmt::format("{} is empty or too wide", flag));
  std::vector<std::string> out;
  for (uint64_t id = first; id <= last; ++id) out.push_back(std::to_string(id));
  return out;
}

std::vector<std::string> LinesOf(const std::string& path) {
  std::ifstream file(path);
  if (!file) FailCommand(kExitUsage, "cannot read " + path);
  std::vector<std::string> out;
  for (std::string line; std::getline(file, line);) {
    if (!line.empty()) out.push_back(line);
  }
  if (out.empty()) FailCommand(kExitUsage, path + " is empty");
  return out;
}

double Ms(const LoadResult& result, double quantile) {
  return 1e-3 * static_cast<double>(result.latency.QuantileUs(quantile));
}

nlohmann::ordered_json ToJson(const LoadResult& result) {
  nlohmann::ordered_json out;
  out["offered_per_s"] = result.offered_per_s;
  out["goodput_per_s"] = result.goodput_per_s;
  out["arrivals"] = result.arrivals;
  out["ok"] = result.ok;
  out["errors"] = result.errors;
  out["p50_ms"] = Ms(result, 0.5);
  out["p90_ms"] = Ms(result, 0.9);
  out["p99_ms"] = Ms(result, 0.99);
  out["p99_9_ms"] = Ms(result, 0.999);
  out["max_ms"] = 1e-3 * static_cast<double>(result.latency.max_us());
  out["generator_late_p99_ms"] = 1e-3 * static_cast<double>(result.late_start_p99_us);
  return out;
}

void PrintRow(std::FILE* to, const LoadResult& result) {
  std::string errors;
  for (const auto& [name, count] : result.errors) errors += fmt::format(" {} {}", count, name);
  fmt::print(to, "{:>10.1f} {:>10.1f} {:>9.2f} {:>9.2f} {:>9.2f} {:>9.2f} {:>9.2f} {:>9.2f} {}\n", result.offered_per_s,
             result.goodput_per_s, Ms(result, 0.5), Ms(result, 0.9), Ms(result, 0.99), Ms(result, 0.999),
             1e-3 * static_cast<double>(result.latency.max_us()), 1e-3 * static_cast<double>(result.late_start_p99_us),
             errors);
}

void PrintHeader(std::FILE* to) {
  fmt::print(to, "{:>10} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {}\n", "offered/s", "ok/s", "p50 ms", "p90 ms",
             "p99 ms", "p99.9 ms", "max ms", "gen late", "errors");
}

}  // namespace

void LoadRates::AddTo(CLI::App* command) {
  command->add_option("--rate", rates, "Requests a second, one or several rates in turn [find the knee]")
      ->check(CLI::PositiveNumber);
  command->add_option("--rate-first", rate_first, "First rate of the sweep")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--rate-max", rate_max, "Highest rate of the sweep")->capture_default_str();
  command->add_option("--slo-ms", slo_ms, "p99 objective of the knee")->capture_default_str();
  command->add_option("--steps", steps, "Times the knee is narrowed")->capture_default_str();
  command->add_flag("--json", json, "Print the report as JSON; the table goes to standard error");
}

std::vector<std::string> IdsOf(const std::string& file, const std::string& range, const char* range_flag) {
  return file.empty() ? RangeOf(range, range_flag) : LinesOf(file);
}

void WaitForServer(const ClientOptions& client) {
  if (client.Connect()->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(5))) return;
  FailCommand(kExitUnavailable, "no server answers at " + client.server);
}

void ReportLoad(const LoadRates& rates, const nlohmann::ordered_json& head, const std::string& what,
                const MeasureRate& measure, const AfterRow& after) {
  nlohmann::ordered_json out;
  out["machine"] = MachineLine();
  out.update(head);
  out["slo_ms"] = rates.slo_ms;
  std::FILE* table = rates.json ? stderr : stdout;
  fmt::print(table, "{}; {}\n", MachineLine(), what);
  PrintHeader(table);
  const auto run = [&](double rate) {
    LoadResult result = measure(rate);
    PrintRow(table, result);
    nlohmann::ordered_json& object = out["runs"].emplace_back(ToJson(result));
    if (after) after(table, &object);
    std::fflush(table);
    return result;
  };
  for (const double rate : rates.rates) run(rate);
  if (rates.rates.empty()) {
    const KneeReport report = FindKnee(rates.rate_first, rates.rate_max, rates.slo_ms, rates.steps, run);
    out["knee_per_s"] = report.knee_per_s;
    fmt::print(table, "knee: {:.1f} requests/s with p99 <= {} ms and >= 99 % OK\n", report.knee_per_s, rates.slo_ms);
  }
  if (rates.json) std::cout << out.dump() << "\n";
}

}  // namespace backstory
