#include "serving/cli/evaluate_command.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <iostream>
#include <memory>

#include "backstory/v1/ranking.grpc.pb.h"
#include "features/io/event_json.h"
#include "features/io/import_file.h"
#include "nlohmann/json.hpp"
#include "serving/cli/evaluate_report.h"
#include "serving/cli/exit_codes.h"
#include "serving/cli/held_out.h"
#include "serving/cli/rank_client.h"
#include "serving/cli/ranking_quality.h"

namespace backstory {
namespace {

constexpr int kLatencyCandidates = 200, kLatencyUsers = 20, kLatencyRounds = 15;

struct Options {
  std::string server, ns = "default", preset, events, items, label_action = "rating", card, json_file, model;
  double label_min = 4, fraction = 0.8;
  int show = 3, streams = 2;
  bool json = false;
};

// Everything one run needs.
struct Evaluation {
  Options options;
  std::unique_ptr<v1::Ranking::Stub> stub;
  std::vector<UserHistory> users;
  Titles titles;
  std::vector<uint64_t> item_ids;
  std::string model;
};

Evaluation Prepare(const Options& options) {
  auto mappings = PresetMappings(options.preset);
  if (!mappings.ok()) FailCommand(kExitUsage, std::string(mappings.status().message()));
  std::vector<BadRow> bad;
  auto events = ReadEventFile(options.events, mappings->events, &bad);
  CheckOk(events.status());
  auto items = ReadItemFile(options.items, mappings->items, &bad);
  CheckOk(items.status());
  if (!bad.empty()) FailCommand(kExitFailed, fmt::format("{} bad rows, the first at line {}: {}", bad.size(), bad[0].line, bad[0].reason));
  auto action = ActionTypeFromName(options.label_action);
  if (!action.ok()) FailCommand(kExitUsage, std::string(action.status().message()));

  Evaluation e{options, nullptr, {}, {}, {}, {}};
  e.users = SplitByTime(*events, {.action = *action, .min_value = static_cast<float>(options.label_min)},
                        options.fraction);
  if (e.users.empty()) FailCommand(kExitFailed, fmt::format("{}: no event with action {}", options.events, options.label_action));
  for (Item& item : *items) {
    e.item_ids.push_back(item.item_id);
    e.titles[item.item_id] = std::move(item.title);
  }
  e.stub = v1::Ranking::NewStub(grpc::CreateChannel(options.server, grpc::InsecureChannelCredentials()));
  return e;
}

v1::RankRequest Request(const Evaluation& e, const UserHistory& user, int64_t now_us) {
  v1::RankRequest request;
  request.set_namespace_(e.options.ns);
  request.mutable_units()->mutable_user()->set_user(user.user);
  request.mutable_model()->set_name(e.options.model);
  request.set_now_us(now_us);
  return request;
}

v1::RankResponse RankOne(const Evaluation& e, const v1::RankRequest& request) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
  context.set_wait_for_ready(true);
  v1::RankResponse response;
  const grpc::Status status = e.stub->Rank(&context, request, &response);
  CheckOk(absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message()));
  return response;
}

void ShowUsers(const Evaluation& e) {
  constexpr size_t kEach = 4;
  for (const size_t u : Showcase(e.users, static_cast<size_t>(e.options.show), kEach)) {
    const UserHistory& user = e.users[u];
    const std::vector<size_t> shown = ShowcaseEvents(user, kEach);
    v1::RankRequest request = Request(e, user, user.events[user.held_out].event.time_us);
    for (const size_t i : shown) request.mutable_candidates()->add_item_ids(user.events[i].event.item_id);
    request.set_explain_top(4);
    std::cout << ShowcaseTable(user, shown, RankOne(e, request), e.titles);
    request.set_explain_top(0);
    std::cout << "  again " << CacheLine(RankOne(e, request).cache()) << "\n\n" << std::flush;
  }
}

struct Scored {
  RankingQuality model, item_rate;
};

// Ranks every held-out event at its own time: what is later, its own tie group included, is invisible.
Scored ScoreHeldOut(Evaluation* e) {
  struct Origin {
    size_t user, begin, end;
  };
  std::vector<v1::RankRequest> requests;
  std::vector<Origin> origins;
  for (size_t u = 0; u < e->users.size(); ++u) {
    const UserHistory& user = e->users[u];
    for (size_t begin = user.held_out, end; begin < user.events.size(); begin = end) {
      const Event& first = user.events[begin].event;
      requests.push_back(Request(*e, user, first.time_us));
      requests.back().set_criticality(v1::CRITICALITY_BATCH);
      for (end = begin; end < user.events.size() && user.events[end].event.time_us == first.time_us; ++end) {
        requests.back().mutable_candidates()->add_item_ids(user.events[end].event.item_id);
      }
      origins.push_back({u, begin, end});
    }
  }
  std::vector<ScoredLabel> model, item_rate;
  const auto done = [&](size_t i, const v1::RankResponse& response) -> absl::Status {
    const Origin& o = origins[i];
    if (response.scores_size() < 1 || response.scores(0).calibrated_size() != static_cast<int>(o.end - o.begin)) {
      return absl::InternalError(fmt::format("request {}: the reply has not one score per candidate", i));
    }
    e->model = response.model() + "/" + response.version();
    for (size_t k = o.begin; k < o.end; ++k) {
      const LabelledEvent& event = e->users[o.user].events[k];
      model.push_back({o.user, response.scores(0).calibrated(static_cast<int>(k - o.begin)), event.positive});
      item_rate.push_back({o.user, event.item_rate, event.positive});
    }
    return absl::OkStatus();
  };
  const bool terminal = isatty(STDERR_FILENO) != 0;
  const auto progress = [&](size_t n) {
    if (terminal) std::cerr << fmt::format("\rranked {} of {} moments", n, requests.size()) << std::flush;
  };
  CheckOk(RankAll(e->stub.get(), &requests, e->options.streams, done, progress));
  if (terminal) std::cerr << "\n";
  return {Quality(model), Quality(item_rate)};
}

struct Latency {
  double p50_ms = 0, p99_ms = 0;
  size_t calls = 0;
};

// One call at a time, the longest histories, cached: what a caller of an idle server waits.
Latency MeasureLatency(const Evaluation& e) {
  std::vector<const UserHistory*> longest;
  for (const UserHistory& user : e.users) longest.push_back(&user);
  std::stable_sort(longest.begin(), longest.end(),
                   [](const auto* a, const auto* b) { return a->events.size() > b->events.size(); });
  longest.resize(std::min<size_t>(longest.size(), kLatencyUsers));
  std::vector<double> ms;
  for (int round = 0; round <= kLatencyRounds; ++round) {
    for (const UserHistory* user : longest) {
      v1::RankRequest request = Request(e, *user, user->events.back().event.time_us + 1);
      for (int i = 0; i < kLatencyCandidates; ++i) {
        request.mutable_candidates()->add_item_ids(e.item_ids[static_cast<size_t>(i * 37 + round) % e.item_ids.size()]);
      }
      const auto start = std::chrono::steady_clock::now();
      RankOne(e, request);
      const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
      if (round > 0) ms.push_back(took.count());  // round 0 builds the states
    }
  }
  std::sort(ms.begin(), ms.end());
  return {ms[ms.size() / 2], ms[ms.size() * 99 / 100], ms.size()};
}

// Rounded to 1 / `parts`; JSON has no NaN.
nlohmann::json Number(double value, double parts) {
  return std::isnan(value) ? nlohmann::json(nullptr) : nlohmann::json(std::round(value * parts) / parts);
}

// Baselines of the model card ({"baselines": {name: {"auc": x}}}) beside what this run measured itself.
nlohmann::json Baselines(const Options& options, const RankingQuality& item_rate) {
  nlohmann::json baselines;
  baselines["item_rate"] = {{"auc", Number(item_rate.auc, 1e5)}, {"source", "live"}};
  if (options.card.empty()) return baselines;
  std::ifstream file(options.card);
  const nlohmann::json card = nlohmann::json::parse(file, nullptr, false);
  if (card.is_discarded() || !card.contains("baselines") || !card["baselines"].is_object()) {
    FailCommand(kExitFailed, options.card + ": no JSON object with \"baselines\"");
  }
  for (const auto& [name, values] : card["baselines"].items()) {
    if (values.is_object() && values.contains("auc") && !baselines.contains(name)) {
      baselines[name] = {{"auc", values["auc"]}, {"source", "card"}};
    }
  }
  return baselines;
}

void Run(const Options& options) {
  Evaluation e = Prepare(options);
  ShowUsers(e);
  const Scored scored = ScoreHeldOut(&e);
  const Latency latency = MeasureLatency(e);
  size_t events = 0;
  for (const UserHistory& user : e.users) events += user.events.size();

  nlohmann::json result;
  result["auc"] = Number(scored.model.auc, 1e5);
  result["gauc"] = Number(scored.model.gauc, 1e5);
  result["log_loss"] = Number(scored.model.log_loss, 1e5);
  result["pcoc"] = Number(scored.model.pcoc, 1e5);
  result["baselines"] = Baselines(options, scored.item_rate);
  result["users"] = e.users.size();
  result["events"] = events;
  result["held_out"] = scored.model.n;
  result["rank_p50_ms"] = Number(latency.p50_ms, 1e3);
  result["rank_p99_ms"] = Number(latency.p99_ms, 1e3);
  result["model"] = e.model;
  result["server"] = options.server;
  result["console"] = nullptr;

  std::cout << fmt::format("{} held-out events of {} users, each ranked as of its own time by {}\n", scored.model.n,
                           e.users.size(), e.model);
  std::cout << fmt::format("  AUC {:.4f}  GAUC {:.4f}  log loss {:.4f}  PCOC {:.3f}\n", scored.model.auc,
                           scored.model.gauc, scored.model.log_loss, scored.model.pcoc);
  for (const auto& [name, baseline] : result["baselines"].items()) {
    std::cout << fmt::format("  AUC {:.4f}  {} ({})\n", baseline["auc"].get<double>(), name,
                             baseline["source"].get<std::string>());
  }
  std::cout << fmt::format("{} calls of {} candidates for the {} longest histories, cached: p50 {:.2f} ms, p99 {:.2f} ms\n",
                           latency.calls, kLatencyCandidates, std::min<size_t>(e.users.size(), kLatencyUsers),
                           latency.p50_ms, latency.p99_ms);
  if (options.json) std::cout << result.dump() << "\n";
  if (!options.json_file.empty()) {
    std::ofstream out(options.json_file);
    out << result.dump() << "\n";
    if (!out.flush()) FailCommand(kExitFailed, options.json_file + ": cannot be written");
  }
}

}  // namespace

void AddEvaluateCommand(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "evaluate", "Measure a served model on real held-out events, each ranked as of its own time");
  command->footer(
      "Examples:\n  backstory evaluate --server 127.0.0.1:7070 --preset movielens --events ratings.csv --items movies.csv\n"
      "  backstory evaluate --server HOST:PORT --events log.jsonl --items items.jsonl --label-action click --label-min 0");
  command->add_option("--server", options->server, "HOST:PORT of the ranking service")->required();
  command->add_option("--namespace", options->ns, "namespace the events were ingested into");
  command->add_option("--model", options->model, "model name; default: the server's");
  command->add_option("--preset", options->preset, "column mapping of the files (movielens)");
  command->add_option("--events", options->events, "the events that were ingested")->required();
  command->add_option("--items", options->items, "the items, for titles and candidates")->required();
  command->add_option("--label-action", options->label_action, "action that is the label");
  command->add_option("--label-min", options->label_min, "a label is positive from this value on");
  command->add_option("--fraction", options->fraction, "share of each user's events before the held-out part")
      ->check(CLI::Range(0.0, 1.0));
  command->add_option("--show", options->show, "users to show")->check(CLI::Range(0, 100));
  command->add_option("--streams", options->streams, "parallel streams")->check(CLI::Range(1, 64));
  command->add_option("--card", options->card, "JSON of a model card, for its baselines");
  command->add_option("--json-file", options->json_file, "write the result as one JSON object");
  command->add_flag("--json", options->json, "print the result as one JSON object, last");
  command->callback([options] { Run(*options); });
}

}  // namespace backstory
