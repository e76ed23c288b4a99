// Retrieval.Recommend over gRPC at the released size, one client at a time: d 96, 6 heads x 32, FFN 1024, 4 + 4 layers,
// 151 slots, levels [64, 128, 128], beam 20, 10,000 items, users with 1,000 behaviours. Server and client share the
// machine.
//   unchanged   nothing happened since the user's last request: the state and the encoder's output are reused
//   refreshed   one event was appended 20 ms before: the refresh that the append started has run the encoder already
//   one event   one event was appended right before, so that the request meets that refresh: it waits for it, or does
//   its
//               work. The append itself is not counted
//   first       no state yet: the history is read from RocksDB
// Run: build/release/bin/glass_serving_bench [requests [f32|bf16]]. Weights are random; time does not depend on them.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>

#include "backstory/v1/retrieval.grpc.pb.h"
#include "tests/bench/machine.h"
#include "tests/models/glass_version_fixture.h"
#include "tests/system/client.h"
#include "tests/system/server_process.h"

namespace backstory {
namespace {

constexpr int kUsers = 16, kHistory = 1'000;
constexpr int64_t kStart = 1'600'000'000'000'000, kMinute = 60'000'000;

glass::VersionParts ReleasedSize() {
  glass::VersionParts parts = glass::MakeParts("released", 10'000, 5, [](glass::Config* c) {
    const glass::Config released;
    c->d = released.d, c->heads = released.heads, c->d_kv = released.d_kv, c->ffn = released.ffn;
    c->encoder_layers = released.encoder_layers, c->decoder_layers = released.decoder_layers;
    c->levels = released.levels, c->vocabulary = released.vocabulary, c->short_items = released.short_items;
    c->retrieved_items = released.retrieved_items, c->embedding_width = released.embedding_width,
    c->beam = released.beam;
    c->quantiser_latent = released.embedding_width;
  });
  return parts;
}

v1::Event RatingAt(uint64_t id, int64_t time_us, uint64_t item) {
  v1::Event event = Exposure(id, time_us, item);
  event.set_kind(v1::EVENT_KIND_ACTION);
  event.set_action(v1::ACTION_TYPE_RATING);
  event.set_value(5);
  return event;
}

double QuantileMs(std::vector<double> ms, double q) {
  std::sort(ms.begin(), ms.end());
  return ms[std::min(ms.size() - 1, static_cast<size_t>(q * static_cast<double>(ms.size())))];
}

struct Bench {
  ScratchDir scratch;
  std::unique_ptr<ServerProcess> server;
  std::unique_ptr<v1::Retrieval::Stub> retrieval;
  std::unique_ptr<SystemClient> client;
  std::map<std::string, double> stage_ms;
  uint64_t appended = 0;

  void Start(const std::string& precision) {
    const std::string models = (scratch.path() / "models").string();
    glass::MustWrite(ReleasedSize(), models + "/released/1");
    server = std::make_unique<ServerProcess>(
        ServerProcess::Options{.store = scratch.path() / "store",
                               .models = models,
                               .arguments = {"--create-store", "--device", "cpu", "-p", "precision=" + precision},
                               .environment = {}});
    if (!server->Start()) std::fprintf(stderr, "%s\n", server->log().c_str()), std::exit(1);
    retrieval = v1::Retrieval::NewStub(server->Connect());
    client = std::make_unique<SystemClient>(server->Connect());
    std::mt19937 random(3);
    for (int u = 0; u < kUsers; ++u) {
      std::vector<v1::Event> events;
      for (int i = 0; i < kHistory; ++i) {
        events.push_back(RatingAt(1 + static_cast<uint64_t>(i), kStart + i * kMinute, 1000 + 3 * (random() % 10'000)));
      }
      if (!client->Append("user-" + std::to_string(u), events).first.ok()) std::exit(1);
    }
  }
  double Recommend(int user) {
    v1::RecommendRequest request;
    request.set_namespace_(kSystemNamespace);
    request.mutable_units()->mutable_user()->set_user("user-" + std::to_string(user));
    request.set_count(20);
    request.set_stage_timings(true);
    v1::RecommendResponse response;
    const auto start = std::chrono::steady_clock::now();
    const grpc::Status status = retrieval->Recommend(SystemClient::Context().get(), request, &response);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    if (!status.ok()) std::fprintf(stderr, "%s\n", status.error_message().c_str()), std::exit(1);
    for (const auto& timing : response.timings()) {
      stage_ms[timing.stage()] += 1e-3 * static_cast<double>(timing.duration_us());
    }
    return took.count();
  }
  void AfterAppends(int requests, std::chrono::milliseconds pause, const char* name) {
    std::vector<double> ms;
    stage_ms.clear();
    for (int i = 0; i < requests; ++i, ++appended) {
      const std::string user = "user-" + std::to_string(i % kUsers);
      const v1::Event event =
          RatingAt(10'000 + appended, kStart + (kHistory + static_cast<int64_t>(appended)) * kMinute,
                   1000 + 3 * (appended % 9'999));
      if (!client->Append(user, {event}).first.ok()) std::exit(1);
      std::this_thread::sleep_for(pause);
      ms.push_back(Recommend(i % kUsers));
    }
    Report(name, ms);
  }
  void Report(const char* name, const std::vector<double>& ms) {
    std::printf("%-10s %6zu requests  p50 %6.2f ms  p90 %6.2f  p99 %6.2f   mean of stages, ms:", name, ms.size(),
                QuantileMs(ms, 0.5), QuantileMs(ms, 0.9), QuantileMs(ms, 0.99));
    for (const auto& [stage, sum] : stage_ms)
      std::printf(" %s %.2f", stage.c_str(), sum / static_cast<double>(ms.size()));
    std::printf("\n");
    stage_ms.clear();
  }
};

void Run(int requests, const std::string& precision) {
  PrintMachine();
  std::printf("precision %s\n", precision.c_str());
  Bench bench;
  bench.Start(precision);
  std::vector<double> ms;
  for (int u = 0; u < kUsers; ++u) ms.push_back(bench.Recommend(u));
  bench.Report("first", ms);
  for (int i = 0; i < requests / 10; ++i) bench.Recommend(i % kUsers);
  bench.stage_ms.clear();
  ms.clear();
  for (int i = 0; i < requests; ++i) ms.push_back(bench.Recommend(i % kUsers));
  bench.Report("unchanged", ms);
  bench.AfterAppends(requests, std::chrono::milliseconds(20), "refreshed");
  bench.AfterAppends(requests, std::chrono::milliseconds(0), "one event");
}

}  // namespace
}  // namespace backstory

int main(int argc, char** argv) { backstory::Run(argc > 1 ? std::atoi(argv[1]) : 500, argc > 2 ? argv[2] : "f32"); }
