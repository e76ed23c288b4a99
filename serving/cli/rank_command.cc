#include "serving/cli/rank_command.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <memory>
#include <numeric>

#include "CLI/CLI.hpp"
#include "absl/strings/numbers.h"
#include "backstory/v1/ranking.grpc.pb.h"
#include "fmt/format.h"
#include "serving/cli/catalog_titles.h"
#include "serving/cli/client_options.h"
#include "serving/cli/exit_codes.h"

namespace backstory {
namespace {

struct Options {
  ClientOptions client;
  std::string user, ns, scene, model, version, label, items_file;
  std::vector<uint64_t> items;
  std::vector<std::string> features, parameters;
  int64_t now_us = 0;
  uint32_t explain = 0;
  size_t top = 20;
  bool json = false, timings = false;
};

constexpr char kExamples[] = R"(Examples:
  backstory rank --user 42 --items 1,2,3
  backstory rank --server host:7070 --namespace movielens --user 414 --items-file ids.txt --explain 2 --timings
  backstory rank --user 42 --items 1,2 --feature device=phone --feature hour=13 --json
A feature whose value is a number is sent as one; write name:=text to send digits as text.)";

// name=value (number if it reads as one) or name:=text
void AddFeature(const std::string& text, v1::RankRequest* request) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0) FailCommand(kExitUsage, "--feature must be name=value, is " + text);
  const bool as_text = text[equals - 1] == ':';
  const std::string name = text.substr(0, equals - (as_text ? 1 : 0));
  const std::string value = text.substr(equals + 1);
  auto& feature = (*request->mutable_features())[name];
  double number = 0;
  if (!as_text && absl::SimpleAtod(value, &number)) {
    feature.set_number(number);
  } else {
    feature.set_text(value);
  }
}

v1::RankRequest RequestOf(const Options& options) {
  v1::RankRequest request;
  request.set_namespace_(options.ns);
  request.set_scene(options.scene);
  request.mutable_units()->mutable_user()->set_user(options.user);
  request.mutable_model()->set_name(options.model);
  if (!options.version.empty()) request.mutable_model()->set_version(options.version);
  if (!options.label.empty()) request.mutable_model()->set_label(options.label);
  request.set_now_us(options.now_us);
  request.set_explain_top(options.explain);
  request.set_stage_timings(options.timings);
  for (uint64_t item : options.items) request.mutable_candidates()->add_item_ids(item);
  if (!options.items_file.empty()) {
    std::ifstream file(options.items_file);
    if (!file) FailCommand(kExitUsage, "cannot read " + options.items_file);
    for (uint64_t item; file >> item;) request.mutable_candidates()->add_item_ids(item);
    if (!file.eof()) FailCommand(kExitUsage, options.items_file + ": item ids must be decimal numbers, one a line");
  }
  for (const std::string& text : options.features) AddFeature(text, &request);
  for (const std::string& text : options.parameters) {
    const size_t equals = text.find('=');
    if (equals == std::string::npos) FailCommand(kExitUsage, "--parameter must be name=value, is " + text);
    (*request.mutable_parameters())[text.substr(0, equals)] = text.substr(equals + 1);
  }
  return request;
}

void PrintTable(const Options& options, const v1::RankRequest& request, const v1::RankResponse& response,
                const Titles& titles) {
  if (response.scores_size() == 0) return;
  const auto& first = response.scores(0);
  std::vector<int> order(static_cast<size_t>(request.candidates().item_ids_size()));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return first.raw_logit(a) > first.raw_logit(b); });
  fmt::print("{:>4}", "rank");
  for (const auto& score : response.scores()) fmt::print("  {:>10}", "P(" + score.task() + ")");
  fmt::print("  {:>12}  {}\n", "item", "title");
  for (size_t r = 0; r < order.size() && r < options.top; ++r) {
    const int i = order[r];
    fmt::print("{:>4}", r + 1);
    for (const auto& score : response.scores()) fmt::print("  {:>10.4f}", score.calibrated(i));
    fmt::print("  {:>12}  {}\n", request.candidates().item_ids(i), titles.Of(request.candidates().item_ids(i)));
    if (i < response.explanations_size()) PrintExplanation(response.explanations(i), titles, true);
  }
  const auto& cache = response.cache();
  fmt::print("model {}/{} · seq {} · state {}: {} rows reused, {} computed", response.model(), response.version(),
             response.seq(), cache.source(), cache.rows_reused(), cache.rows_computed());
  if (response.unknown_user()) fmt::print(" · unknown user, ranked without history");
  if (response.unknown_items_size() > 0) fmt::print(" · {} unknown items", response.unknown_items_size());
  if (response.degrade_step() > 0) fmt::print(" · degraded, step {}", response.degrade_step());
  fmt::print("\n");
  for (const auto& timing : response.timings()) {
    fmt::print("  {:<10} {:>8.3f} ms\n", timing.stage(), 1e-3 * static_cast<double>(timing.duration_us()));
  }
}

void Rank(const Options& options) {
  const v1::RankRequest request = RequestOf(options);
  auto channel = options.client.Connect();
  auto context = options.client.Context();
  v1::RankResponse response;
  CheckCall(v1::Ranking::NewStub(channel)->Rank(context.get(), request, &response));
  if (options.json) return PrintJson(response);
  std::vector<uint64_t> ids(request.candidates().item_ids().begin(), request.candidates().item_ids().end());
  for (const auto& explanation : response.explanations()) {
    for (const auto& event : explanation.events()) ids.push_back(event.item_id());
  }
  PrintTable(options, request, response, Titles(options.client, channel, options.ns, std::move(ids)));
}

}  // namespace

void AddRankCommand(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("rank", "Rank candidates for a user");
  command->footer(kExamples);
  options->client.AddTo(command);
  command->add_option("--user", options->user, "User id")->required();
  command->add_option("--namespace", options->ns, "Namespace [default]");
  command->add_option("--scene", options->scene, "Where the result will be shown");
  auto* items = command->add_option("--items", options->items, "Item ids, separated by commas")->delimiter(',');
  command->add_option("--items-file", options->items_file, "File with one item id a line")->excludes(items);
  command->add_option("--model", options->model, "Model [the server's default]");
  auto* version = command->add_option("--version-id", options->version, "Exact version");
  command->add_option("--label", options->label, "Label, e.g. canary [stable]")->excludes(version);
  command->add_option("--now-us", options->now_us, "Rank as of this time, microseconds [now]");
  command->add_option("--feature", options->features, "Request feature, name=value; may be repeated");
  command->add_option("--parameter", options->parameters, "Parameter override, name=value (needs the role)");
  command->add_option("--explain", options->explain, "Past events to show per candidate and channel");
  command->add_option("--top", options->top, "Rows to print")->capture_default_str();
  command->add_flag("--timings", options->timings, "Show stage timings");
  command->add_flag("--json", options->json, "Print the reply as JSON");
  command->callback([options] { Rank(*options); });
}

}  // namespace backstory
