#include "serving/cli/recommend_command.h"

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "backstory/v1/retrieval.grpc.pb.h"
#include "fmt/format.h"
#include "serving/cli/catalog_titles.h"
#include "serving/cli/client_options.h"
#include "serving/cli/exit_codes.h"

namespace backstory {
namespace {

struct Options {
  ClientOptions client;
  std::string user, ns, scene, model, version, label, rank_model;
  std::vector<uint64_t> exclude;
  std::vector<std::string> categories, parameters;
  int64_t now_us = 0, as_of_us = -1;
  uint32_t count = 10, beam = 0, explain = 0;
  int per_sid_max = -1;
  bool allow_seen = false, rank = false, json = false, timings = false;
};

constexpr char kExamples[] = R"(Examples:
  backstory recommend --user 414
  backstory recommend --server host:7070 --namespace movielens --user 414 --count 20 --explain 3
  backstory recommend --user 414 --rank --category Comedy --exclude 1,2 --timings)";

v1::RecommendRequest RequestOf(const Options& options) {
  v1::RecommendRequest request;
  request.set_namespace_(options.ns);
  request.set_scene(options.scene);
  request.mutable_units()->mutable_user()->set_user(options.user);
  request.mutable_model()->set_name(options.model);
  if (!options.version.empty()) request.mutable_model()->set_version(options.version);
  if (!options.label.empty()) request.mutable_model()->set_label(options.label);
  request.set_now_us(options.now_us);
  if (options.as_of_us >= 0) request.mutable_as_of()->set_event_time_us(options.as_of_us);
  request.set_count(options.count);
  request.set_beam(options.beam);
  request.set_explain_top(options.explain);
  request.set_stage_timings(options.timings);
  request.mutable_exclude_item_ids()->Assign(options.exclude.begin(), options.exclude.end());
  for (const std::string& category : options.categories) request.add_include_categories(category);
  if (options.allow_seen) request.set_exclude_seen(false);
  if (options.per_sid_max >= 0) request.set_per_sid_max(static_cast<uint32_t>(options.per_sid_max));
  if (options.rank || !options.rank_model.empty())
    request.mutable_rank()->mutable_model()->set_name(options.rank_model);
  for (const std::string& text : options.parameters) {
    const size_t equals = text.find('=');
    if (equals == std::string::npos) FailCommand(kExitUsage, "--parameter must be name=value, is " + text);
    (*request.mutable_parameters())[text.substr(0, equals)] = text.substr(equals + 1);
  }
  return request;
}

void PrintTable(const v1::RecommendResponse& response, const Titles& titles) {
  fmt::print("{:>4}  {:>9}", "rank", "ln P(sid)");
  if (response.items(0).ranked_size() > 0) fmt::print("  {:>10}", "P(" + response.items(0).ranked(0).task() + ")");
  fmt::print("  {:>14}  {:>10}  {}\n", "semantic id", "item", "title");
  int rank = 0;
  for (const auto& item : response.items()) {
    const std::string sid = fmt::format("{}-{}-{}", item.sid(0), item.sid(1), item.sid(2));
    fmt::print("{:>4}  {:>9.4f}", ++rank, item.log_probability());
    if (item.ranked_size() > 0) fmt::print("  {:>10.4f}", item.ranked(0).calibrated());
    fmt::print("  {:>14}  {:>10}  {}\n", sid, item.item_id(), titles.Of(item.item_id()));
    if (item.has_explanation())
      fmt::print("      found in the long history (gate {:.2f}), by attention:\n", item.search_gate());
    PrintExplanation(item.explanation(), titles, false);
  }
  const auto& cache = response.cache();
  fmt::print("model {}/{} · beam {} · history {} short + {} long · state {}: {} events reused, {} taken in",
             response.model(), response.version(), response.beam(), response.rows_visible(0), response.rows_visible(1),
             cache.source(), cache.rows_reused(), cache.rows_computed());
  if (!response.rank_model().empty()) fmt::print(" · ranked by {}/{}", response.rank_model(), response.rank_version());
  if (response.unknown_user()) fmt::print(" · unknown user, nothing known of them");
  if (response.partial()) fmt::print(" · {}", response.partial_reason());
  if (response.degrade_step() > 0) fmt::print(" · degraded, step {}", response.degrade_step());
  fmt::print("\n");
  for (const auto& timing : response.timings()) {
    fmt::print("  {:<10} {:>8.3f} ms\n", timing.stage(), 1e-3 * static_cast<double>(timing.duration_us()));
  }
}

void Recommend(const Options& options) {
  const v1::RecommendRequest request = RequestOf(options);
  auto channel = options.client.Connect();
  auto context = options.client.Context();
  v1::RecommendResponse response;
  CheckCall(v1::Retrieval::NewStub(channel)->Recommend(context.get(), request, &response));
  if (options.json) return PrintJson(response);
  std::vector<uint64_t> ids;
  for (const auto& item : response.items()) {
    ids.push_back(item.item_id());
    for (const auto& event : item.explanation().events()) ids.push_back(event.item_id());
  }
  PrintTable(response, Titles(options.client, channel, options.ns, std::move(ids)));
}

}  // namespace

void AddRecommendCommand(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("recommend", "Recommend items for a user");
  command->footer(kExamples);
  options->client.AddTo(command);
  command->add_option("--user", options->user, "User id")->required();
  command->add_option("--namespace", options->ns, "Namespace [default]");
  command->add_option("--scene", options->scene, "Where the result will be shown");
  command->add_option("--count", options->count, "Items wanted, 1..1000")->capture_default_str();
  command->add_option("--beam", options->beam, "Semantic IDs to follow, up to 1024 [the model's]");
  command->add_option("--model", options->model, "Generative model [the server's default]");
  auto* version = command->add_option("--version-id", options->version, "Exact version");
  command->add_option("--label", options->label, "Label, e.g. canary [stable]")->excludes(version);
  command->add_option("--exclude", options->exclude, "Item ids to leave out, separated by commas")->delimiter(',');
  command->add_option("--category", options->categories, "Only items of this catalog category; may be repeated");
  command->add_flag("--allow-seen", options->allow_seen, "Also items that the user has already");
  command->add_option("--per-sid", options->per_sid_max, "Most items of one semantic ID [parameter]");
  command->add_flag("--rank", options->rank, "Pass the items through the default ranking model");
  command->add_option("--rank-model", options->rank_model, "Pass them through this ranking model");
  command->add_option("--now-us", options->now_us, "Recommend at this time, microseconds [now]");
  command->add_option("--as-of-us", options->as_of_us, "See only events before this time");
  command->add_option("--parameter", options->parameters, "Parameter override, name=value (needs the role)");
  command->add_option("--explain", options->explain, "Past behaviours to show per item");
  command->add_flag("--timings", options->timings, "Show stage timings");
  command->add_flag("--json", options->json, "Print the reply as JSON");
  command->callback([options] { Recommend(*options); });
}

}  // namespace backstory
