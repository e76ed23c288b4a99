// Batch scoring beside the engine alone: rows/s of BatchScorer (plan, requests, order, scatter) and of Engine::Rank fed
// with the very same requests, made before the clock starts. Each round opens engines of its own, so that both build
// every user's state, and then runs once more on the states that are there: the rate of scoring alone.
//   batch_bench STORE MODELS NAMESPACE INPUT.csv MAP TIME_UNIT THREADS ROUNDS
//   batch_bench store models/zoo movielens ratings.csv user=userId,item=movieId,time=timestamp s 2 3
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>

#include "features/io/import_mapping.h"
#include "serving/cli/machine.h"
#include "serving/cli/score_input.h"
#include "serving/embedded/embedded_engine.h"
#include "serving/engine/batch/batch_plan.h"
#include "serving/engine/batch/batch_scorer.h"

namespace backstory {
namespace {

using Clock = std::chrono::steady_clock;

template <typename T>
T Must(absl::StatusOr<T> value) {
  if (value.ok()) return *std::move(value);
  std::fprintf(stderr, "batch_bench: %s\n", value.status().ToString().c_str());
  std::exit(1);
}

double Seconds(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// The engine alone: at most `in_flight` at once, the next one issued as soon as one is back.
double RawSeconds(Engine* engine, std::vector<RankQuery> queries, size_t in_flight_max) {
  std::mutex mutex;
  std::condition_variable changed;
  size_t in_flight = 0, failed = 0;
  const Clock::time_point start = Clock::now();
  for (RankQuery& query : queries) {
    {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return in_flight < in_flight_max; });
      ++in_flight;
    }
    engine->Rank(std::move(query), [&](absl::StatusOr<RankReply> reply) {
      std::lock_guard lock(mutex);
      --in_flight;
      failed += reply.ok() ? 0 : 1;
      changed.notify_one();
    });
  }
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return in_flight == 0; });
  const double seconds = Seconds(start);
  if (failed > 0) std::fprintf(stderr, "batch_bench: %zu requests failed\n", failed);
  return seconds;
}

std::vector<RankQuery> Queries(const BatchRows& rows, const BatchPlan& plan, const BatchOptions& options) {
  std::vector<RankQuery> queries;
  for (const BatchRange& request : plan.requests) {
    queries.push_back(BatchQuery(rows, std::span(plan.order).subspan(request.begin, request.size()), options));
    queries.back().model = options.model;
  }
  return queries;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Seconds of each round.
struct Rates {
  std::vector<double> raw, batch;
};

int Run(char** argv) {
  ScoreMapping mapping;
  if (!AddScoreColumns(argv[5], &mapping).ok()) return 2;
  mapping.time_unit_us = Must(TimeUnitUs(argv[6]));
  ScoreInput input = Must(ScoreInput::Open(argv[4], mapping));
  const auto chunk = input.Read(SIZE_MAX);
  const BatchRows& rows = chunk->Columns();
  EmbeddedOptions open;
  open.store = argv[1];
  open.models = argv[2];
  open.threads = std::atoi(argv[7]);
  BatchOptions options;
  options.ns = argv[3];
  const int rounds = std::atoi(argv[8]);
  std::printf("%s; %d threads, %zu rows\n", MachineLine().c_str(), open.threads, rows.rows);
  Rates cold, warm;
  for (int round = 0; round < rounds; ++round) {
    {
      auto engine = Must(EmbeddedEngine::Open(open));
      options.model = engine->model();
      const BatchPlan plan = Must(PlanBatch(rows, options));
      if (round == 0) std::printf("%zu requests of %zu users\n", plan.requests.size(), plan.users.size());
      for (Rates* rates : {&cold, &warm}) {
        rates->raw.push_back(RawSeconds(engine->engine(), Queries(rows, plan, options), options.in_flight_max));
      }
    }
    auto engine = Must(EmbeddedEngine::Open(open));
    const auto scorer = Must(BatchScorer::Create(engine->engine(), options));
    for (Rates* rates : {&cold, &warm}) {
      const Clock::time_point start = Clock::now();
      Must(scorer->Score(rows));
      rates->batch.push_back(Seconds(start));
    }
    const EngineStats stats = engine->engine()->Stats();
    std::printf("round %d: states built %lu, extended %lu, for one request %lu\n", round + 1, stats.rebuilds,
                stats.extends + stats.truncates, stats.uncached);
  }
  const double n = static_cast<double>(rows.rows);
  for (const auto& [what, rates] : {std::pair("with building states", cold), std::pair("states there", warm)}) {
    std::printf("%-20s engine alone %7.0f rows/s, batch scorer %7.0f rows/s (medians): %.1f %%\n", what,
                n / Median(rates.raw), n / Median(rates.batch), 100 * Median(rates.raw) / Median(rates.batch));
  }
  return 0;
}

}  // namespace
}  // namespace backstory

int main(int argc, char** argv) {
  if (argc != 9) {
    std::fprintf(stderr, "usage: batch_bench STORE MODELS NAMESPACE INPUT.csv MAP TIME_UNIT THREADS ROUNDS\n");
    return 2;
  }
  return backstory::Run(argv);
}
