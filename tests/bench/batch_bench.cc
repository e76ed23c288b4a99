// Batch scoring beside the engine alone: rows/s of BatchScorer (plan, requests, order, scatter) and of Engine::Rank fed
// with the very same requests, made before the clock starts. Each round opens engines of its own, so that both build
// every user's state, and then runs once more on the states that are there: the rate of scoring alone.
//   batch_bench STORE MODELS NAMESPACE INPUT.csv MAP TIME_UNIT THREADS ROUNDS
//   batch_bench store models/zoo movielens ratings.csv user=userId,item=movieId,time=timestamp s 2 3
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <mutex>

#include "features/io/import_mapping.h"
#include "serving/cli/machine.h"
#include "serving/cli/score_input.h"
#include "serving/embedded/embedded_engine.h"
#include "serving/engine/batch/batch_plan.h"
#include "serving/engine/batch/batch_scorer.h"
#include "tests/bench/must.h"

namespace backstory {
namespace {

using Clock = std::chrono::steady_clock;

// Wall clock and processor time of all threads: on a busy machine only the second is worth comparing.
struct Took {
  double wall = 0, cpu = 0;
};

class Stopwatch {
 public:
  Took Stop() const { return {std::chrono::duration<double>(Clock::now() - start_).count(), Cpu() - cpu_}; }

 private:
  static double Cpu() {
    timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  }
  const Clock::time_point start_ = Clock::now();
  const double cpu_ = Cpu();
};

// The engine alone, at its best: at most `in_flight_max` at once, more once a quarter is back.
Took RunRaw(Engine* engine, std::vector<RankQuery> queries, size_t in_flight_max) {
  std::mutex mutex;
  std::condition_variable changed;
  size_t in_flight = 0, failed = 0;
  const size_t few = in_flight_max - in_flight_max / 4;
  const Stopwatch watch;
  for (RankQuery& query : queries) {
    {
      std::unique_lock lock(mutex);
      if (in_flight >= in_flight_max) changed.wait(lock, [&] { return in_flight <= few; });
      ++in_flight;
    }
    engine->Rank(std::move(query), [&](absl::StatusOr<RankReply> reply) {
      std::lock_guard lock(mutex);
      --in_flight;
      failed += reply.ok() ? 0 : 1;
      if (in_flight == few || in_flight == 0) changed.notify_one();
    });
  }
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return in_flight == 0; });
  const Took took = watch.Stop();
  if (failed > 0) std::fprintf(stderr, "batch_bench: %zu requests failed\n", failed);
  return took;
}

std::vector<RankQuery> Queries(const BatchRows& rows, const BatchPlan& plan, const BatchOptions& options) {
  std::vector<RankQuery> queries;
  for (const BatchRange& request : plan.requests) {
    queries.push_back(BatchQuery(rows, std::span(plan.order).subspan(request.begin, request.size()), options));
    queries.back().model = options.model;
  }
  return queries;
}

double Median(const std::vector<Took>& rounds, double Took::*which) {
  std::vector<double> values;
  for (const Took& took : rounds) values.push_back(took.*which);
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Rates {
  std::vector<Took> raw, batch;  // of each round
};

void Print(const char* what, const char* unit, const Rates& rates, double Took::*which, double rows) {
  const double raw = Median(rates.raw, which), batch = Median(rates.batch, which);
  std::printf("%-20s engine alone %7.0f, batch scorer %7.0f rows a second of %s: %.1f %%\n", what, rows / raw,
              rows / batch, unit, 100 * raw / batch);
}

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
        rates->raw.push_back(RunRaw(engine->engine(), Queries(rows, plan, options), options.in_flight_max));
      }
    }
    auto engine = Must(EmbeddedEngine::Open(open));
    const auto scorer = Must(BatchScorer::Create(engine->engine(), options));
    for (Rates* rates : {&cold, &warm}) {
      const Stopwatch watch;
      Must(scorer->Score(rows));
      rates->batch.push_back(watch.Stop());
    }
    const EngineStats stats = engine->engine()->Stats();
    std::printf("round %d: states built %lu, extended %lu, for one request %lu\n", round + 1, stats.rebuilds,
                stats.extends + stats.truncates, stats.uncached);
  }
  for (const auto& [what, rates] : {std::pair("with building states", cold), std::pair("states there", warm)}) {
    Print(what, "wall clock", rates, &Took::wall, static_cast<double>(rows.rows));
    Print(what, "processor time", rates, &Took::cpu, static_cast<double>(rows.rows));
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
