// A user of grab-512 whose pages left the card: what the next score waits for when they are copied from host memory and
// when they are computed again, by length, and what the cost model expects and takes. Then users of grab-dlrm that are
// always computed again, by callers at once.
//   grab_cuda_state_bench [repeats]
// Wall time of Model::Score of 256 candidates, tokenizer included, medians; one user at a time, nothing else queued.
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/thread_pool.h"
#include "models/grab/cuda/model.h"
#include "models/grab/cuda/network.h"
#include "models/grab/init_random.h"
#include "tests/bench/must.h"
#include "tests/models/grab_fixture.h"

namespace backstory::grab {
namespace {

constexpr size_t kCandidates = 256;

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct User {
  std::unique_ptr<UserKv> kv;
  std::vector<size_t> visible;
  CandidateTokens candidates;
  std::vector<float> logits;
};

User MakeUser(const Model& model, size_t rows, Random* random) {
  User user;
  std::vector<ChannelRows> history;
  for (int c = 0; c < model.config().channels(); ++c) history.push_back(RandomHistory(model.config(), rows, random));
  user.kv = model.NewState();
  Must(model.Extend(history, user.kv.get()));
  user.visible.assign(history.size(), rows);
  user.candidates = RandomCandidates(model.config(), kCandidates, history[0].time_us.back() + 1, random);
  user.logits.resize(kCandidates * model.config().tasks.size());
  return user;
}

// Users in one call.
double ScoreMs(const Model& model, std::span<User* const> users) {
  std::vector<ScoreSegment> segments;
  for (User* user : users) {
    segments.push_back({.kv = user->kv.get(),
                        .visible_rows = user->visible,
                        .candidates = &user->candidates,
                        .logits = user->logits.data()});
  }
  const auto begin = std::chrono::steady_clock::now();
  Must(model.Score(segments));
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
}

double ScoreMs(const Model& model, User* user) { return ScoreMs(model, {&user, 1}); }

// Requests of users in turn, four threads, when the card has room for half of them.
void Pressure(const Model& model, CudaPagePool* pool, const CudaRuntime& runtime, bool host, Random* random) {
  constexpr size_t kUsers = 24, kRows = 4096, kThreads = 4, kCalls = 60;
  pool->SetCopyCost(host ? CopyCost{} : CopyCost{.fixed = 1e9});
  std::vector<User> users;
  for (size_t u = 0; u < kUsers; ++u) users.push_back(MakeUser(model, kRows, random));
  const CudaPagePool::Stats before = pool->GetStats();
  const auto begin = std::chrono::steady_clock::now();
  std::vector<std::thread> threads;
  for (size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = 0; i < kCalls; ++i) ScoreMs(model, &users[(i * kThreads + t) % kUsers]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const CudaPagePool::Stats after = pool->GetStats();
  std::printf(
      "%zu users x %zu rows in turn, %d blocks on the card, %s: %.1f scores/s; hits %lu copied %lu computed %lu "
      "fallbacks %lu\n",
      kUsers, kRows, pool->blocks(), host ? "pages from the host" : "computed again", kThreads * kCalls / seconds,
      after.hits - before.hits, after.onboarded - before.onboarded, after.recomputed - before.recomputed,
      runtime.counters.fallbacks.load());
}

void Run(int repeats) {
  const Config config = Must(PresetConfig("grab-512"));
  ThreadPool threads(8);
  auto runtime = Must(CudaRuntime::Open({.kv_bytes = size_t{800} << 20,
                                         .host_bytes = size_t{2} << 30,
                                         .lanes = 2,
                                         .warm_rows = 512,
                                         .fall_back = false,
                                         .log = [](const std::string& line) { std::printf("%s\n", line.c_str()); }}));
  auto model = Must(CreateCudaModel(config, RandomWeights(config, 1), &threads, Dtype::kBf16, runtime));
  auto pool = Must(runtime->PoolFor({.layers = 4, .heads = 4, .d_h = 128}));
  const auto tenant = runtime->TenantFor(model->state_id(), pool->shape());
  const CopyCost copy = pool->copy_cost();
  std::printf("%s; copy %.1f us + %.1f GB/s; compute %.1f us + %.4f us a row + %.3e us a pair\n",
              runtime->device().name().c_str(), copy.fixed * 1e6, 1e-9 / copy.per_byte, tenant->compute.a * 1e6,
              tenant->compute.b * 1e6, tenant->compute.c * 1e6);
  std::printf("rows a channel | score, there | copied | computed | expected copy | expected compute | chosen (ms)\n");
  Random random(2);
  for (const size_t rows : {128, 256, 512, 1024, 2048, 4096, 8192, 16384}) {
    User user = MakeUser(*model, rows, &random);
    std::vector<double> there, copied, computed, chosen;
    ScoreMs(*model, &user);
    for (int i = 0; i < repeats; ++i) there.push_back(ScoreMs(*model, &user));
    const auto timed = [&](const CopyCost& cost, std::vector<double>* ms) {
      pool->SetCopyCost(cost);
      for (int i = 0; i < repeats; ++i) {
        Must(pool->Clear());
        ms->push_back(ScoreMs(*model, &user));
      }
    };
    timed({}, &copied);
    timed({.fixed = 1e9}, &computed);
    const uint64_t before = pool->GetStats().onboarded;
    timed(copy, &chosen);
    const bool by_copy = pool->GetStats().onboarded > before;
    const std::vector<size_t> none(2), all(2, rows);
    const double bytes = static_cast<double>(2 * ((rows + 127) / 128) * pool->shape().block_bytes());
    std::printf("%6zu | %.3f | %.3f | %.3f | %.3f | %.3f | %s %.3f\n", rows, Median(there), Median(copied),
                Median(computed), copy.Seconds(bytes) * 1e3, tenant->compute.Seconds(WorkOf(none, all)) * 1e3,
                by_copy ? "copy" : "compute", Median(chosen));
  }
  const CudaPagePool::Stats s = pool->GetStats();
  std::printf("expected / real seconds: compute %.4f / %.4f, copy %.4f / %.4f\n", s.compute_expected_s, s.compute_s,
              s.copy_expected_s, s.copy_s);
  Must(pool->Clear());
  for (const bool host : {true, false, true, false}) Pressure(*model, pool.get(), *runtime, host, &random);
}

// Users of grab-dlrm whose pages are gone, one after the other: every request computes 7,000 rows through five layers.
void Recomputes() {
  constexpr size_t kUsers = 24, kRows = 7000;
  const Config config = Must(PresetConfig("grab-dlrm"));
  ThreadPool threads(8);
  const CudaKvShape shape = Must(CudaNetwork::KvShape(config));
  const size_t pages = (kRows + 127) / 128 * static_cast<size_t>(config.channels());
  auto runtime = Must(CudaRuntime::Open(
      {.kv_bytes = kUsers / 2 * pages * shape.block_bytes(), .lanes = 4, .warm_rows = 512, .fall_back = false}));
  auto model = Must(CreateCudaModel(config, RandomWeights(config, 1), &threads, Dtype::kBf16, runtime));
  auto pool = Must(runtime->PoolFor(shape));
  Random random(3);
  std::vector<User> users;
  for (size_t u = 0; u < kUsers; ++u) users.push_back(MakeUser(*model, kRows, &random));
  const std::pair<size_t, size_t> loads[] = {{1, 1}, {1, 2}, {1, 3}, {1, 4}, {4, 1}, {4, 2}};
  for (const auto& [together, count] : loads) {
    const CudaPagePool::Stats before = pool->GetStats();
    const auto begin = std::chrono::steady_clock::now();
    const auto seconds = [&] {
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    };
    std::atomic<size_t> next{0};
    std::vector<std::thread> callers;
    for (size_t t = 0; t < count; ++t) {
      callers.emplace_back([&, size = together] {
        while (seconds() < 0.6) {
          const size_t first = next.fetch_add(size);
          std::vector<User*> call;
          for (size_t i = 0; i < size; ++i) call.push_back(&users[(first + i) % kUsers]);
          ScoreMs(*model, call);
        }
      });
    }
    for (std::thread& caller : callers) caller.join();
    const double took = seconds();
    const CudaPagePool::Stats after = pool->GetStats();
    std::printf(
        "grab-dlrm, %zu rows computed for 256 candidates, %zu users a call, %zu callers: %.1f users/s (hits %lu)\n",
        kRows, together, count, static_cast<double>(after.recomputed - before.recomputed) / took,
        after.hits - before.hits);
  }
}

}  // namespace
}  // namespace backstory::grab

int main(int argc, char** argv) {
  backstory::grab::Run(argc > 1 ? std::atoi(argv[1]) : 15);
  backstory::grab::Recomputes();
  return 0;
}
