#include "tests/fuzz/rpc_fuzz.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <memory>
#include <string_view>

#include "serving/rpc/handlers.h"
#include "tests/serving/engine/fakes.h"

namespace backstory {
namespace {

// What the handlers stand on: everything in memory, two scoring threads.
struct Core {
  testing::FakeHistoryStore store;
  testing::FakeCatalog catalog;
  MemoryMetrics metrics;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<rpc::Handlers> handlers;

  Core() {
    EngineOptions options;
    options.parameters = {{"threads", "2"}, {"cache_bytes", "1048576"}};
    options.load_at_start = false;
    auto model = std::make_shared<testing::FakeModel>(testing::FakeConfig());
    ModelLoader loader = [model](const ModelSource& source) -> absl::StatusOr<std::shared_ptr<const ServedModel>> {
      if (source.model != "fake" || source.version.size() > 4) return absl::NotFoundError("no such version");
      return testing::Served(model, source.version);
    };
    auto created = Engine::Create(std::move(options), &store, &catalog, loader, SystemClock(), &metrics);
    if (!created.ok()) std::abort();
    engine = *std::move(created);
    if (!engine->models().Load("fake", "1").ok() || !engine->models().SetLabel("fake", "stable", "1").ok()) std::abort();
    handlers = std::make_unique<rpc::Handlers>(engine.get(), SystemClock(), rpc::Handlers::Options{});
  }
};

void Require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "broken promise: %s\n", what);
  std::abort();
}

using Bytes = std::string_view;

template <typename Request, typename Response>
absl::Status Run(const Core& core, Bytes bytes, absl::Status (rpc::Handlers::*method)(const Request&, Response*) const) {
  Request request;
  if (!request.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return absl::InvalidArgumentError("no message");
  }
  Response response;
  return (core.handlers.get()->*method)(request, &response);
}

absl::Status RunRank(const Core& core, Bytes bytes) {
  v1::RankRequest request;
  if (!request.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return absl::InvalidArgumentError("no message");
  }
  v1::RankResponse response;
  std::promise<absl::Status> answered;
  core.handlers->Rank(request, {}, &response, [&](absl::Status status) { answered.set_value(std::move(status)); });
  absl::Status status = answered.get_future().get();
  if (!status.ok()) return status;
  for (const auto& column : response.scores()) {
    Require(column.calibrated_size() == request.candidates().item_ids_size(), "one score per candidate");
    for (float p : column.calibrated()) Require(std::isfinite(p) && p >= 0 && p <= 1, "a probability");
  }
  return status;
}

absl::Status RunPrefetch(const Core& core, Bytes bytes) {
  v1::PrefetchRequest request;
  if (!request.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return absl::InvalidArgumentError("no message");
  }
  v1::PrefetchResponse response;
  std::promise<absl::Status> answered;
  core.handlers->Prefetch(request, {}, &response, [&](absl::Status status) { answered.set_value(std::move(status)); });
  return answered.get_future().get();
}

absl::Status RunStream(const Core& core, Bytes bytes) {
  v1::AppendStreamRequest request;
  if (!request.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return absl::InvalidArgumentError("no message");
  }
  v1::AppendStreamResponse response;
  const rpc::Handlers::StreamBatch batch{&request, &response};
  core.handlers->AppendBatches({&batch, 1});
  if (response.has_error()) {
    return {static_cast<absl::StatusCode>(response.error().code()), response.error().message()};
  }
  Require(response.users_size() == request.users_size(), "one ack per user");
  for (int u = 0; u < response.users_size(); ++u) {
    const auto& ack = response.users(u);
    Require(static_cast<int>(ack.accepted() + ack.duplicate() + ack.conflict() + ack.rejected()) ==
                request.users(u).events_size(),
            "every event accounted for");
  }
  return absl::OkStatus();
}

absl::Status Dispatch(const Core& core, int method, Bytes bytes) {
  using rpc::Handlers;
  switch (method) {
    case 0:
      return RunRank(core, bytes);
    case 1:
      return Run(core, bytes, &Handlers::Append);
    case 2:
      return RunStream(core, bytes);
    case 3:
      return Run(core, bytes, &Handlers::GetHistory);
    case 4:
      return Run(core, bytes, &Handlers::Head);
    case 5:
      return Run(core, bytes, &Handlers::Delete);
    case 6:
      return Run(core, bytes, &Handlers::Merge);
    case 7:
      return RunPrefetch(core, bytes);
    case 8:
      return Run(core, bytes, &Handlers::UpsertItems);
    case 9:
      return Run(core, bytes, &Handlers::GetItems);
    case 10:
      return Run(core, bytes, &Handlers::ListModels);
    case 11:
      return Run(core, bytes, &Handlers::LoadModel);
    case 12:
      return Run(core, bytes, &Handlers::UnloadModel);
    case 13:
      return Run(core, bytes, &Handlers::SetLabel);
    case 14:
      return Run(core, bytes, &Handlers::Checkpoint);
    default:
      return Run(core, bytes, &Handlers::Verify);
  }
}

}  // namespace

absl::Status RunRpcInput(const uint8_t* data, size_t size) {
  static Core* const core = new Core();
  if (size == 0) return absl::InvalidArgumentError("no method");
  absl::Status status =
      Dispatch(*core, data[0] % kFuzzedMethods, Bytes(reinterpret_cast<const char*>(data) + 1, size - 1));
  Require(status.code() != absl::StatusCode::kUnknown, "never UNKNOWN");
  return status;
}

}  // namespace backstory

#ifdef BACKSTORY_LIBFUZZER
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  (void)backstory::RunRpcInput(data, size);
  return 0;
}
#endif
