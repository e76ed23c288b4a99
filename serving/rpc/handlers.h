// Every method of backstory.v1 without its transport: message in, message and status out. The gRPC services call these,
// and so does the fuzzer. Start here to see what a method does.
#ifndef BACKSTORY_SERVING_RPC_HANDLERS_H_
#define BACKSTORY_SERVING_RPC_HANDLERS_H_

#include <functional>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "backstory/v1/admin.pb.h"
#include "backstory/v1/catalog.pb.h"
#include "backstory/v1/history.pb.h"
#include "backstory/v1/ranking.pb.h"
#include "backstory/v1/retrieval.pb.h"
#include "serving/engine/engine.h"

namespace backstory::rpc {

using Done = std::function<void(absl::Status)>;

// What a call brings along besides its message.
struct CallContext {
  int64_t deadline_us = INT64_MAX;      // on the engine's monotonic clock
  std::shared_ptr<CancelToken> cancel;  // may be null
};

// Thread-safe. Methods without `done` block (store, loader) and belong on an executor. No method throws, and none returns
// UNKNOWN.
class Handlers {
 public:
  struct Options {
    std::string checkpoint_dir;  // empty: Checkpoint is refused
  };
  // Engine and clock must outlive it.
  Handlers(Engine* engine, Clock* clock, Options options);

  // ---- Ranking. `response` must stay valid until `done`, which runs exactly once and must not block.
  void Rank(const v1::RankRequest& request, const CallContext& context, v1::RankResponse* response, Done done) const;

  // ---- Retrieval: as Rank.
  void Recommend(const v1::RecommendRequest& request, const CallContext& context, v1::RecommendResponse* response,
                 Done done) const;

  // ---- History.
  absl::Status Append(const v1::AppendRequest& request, v1::AppendResponse* response) const;
  // Several batches of one stream, in order, in one commit where possible. Errors go into each response.
  struct StreamBatch {
    const v1::AppendStreamRequest* request;
    v1::AppendStreamResponse* response;
  };
  void AppendBatches(std::span<const StreamBatch> batches) const;
  absl::Status GetHistory(const v1::GetHistoryRequest& request, v1::GetHistoryResponse* response) const;
  absl::Status Head(const v1::HeadRequest& request, v1::HeadResponse* response) const;
  absl::Status Delete(const v1::DeleteRequest& request, v1::DeleteResponse* response) const;
  absl::Status Merge(const v1::MergeRequest& request, v1::MergeResponse* response) const;
  void Prefetch(const v1::PrefetchRequest& request, const CallContext& context, v1::PrefetchResponse* response,
                Done done) const;

  // ---- Catalog.
  absl::Status UpsertItems(const v1::UpsertItemsRequest& request, v1::UpsertItemsResponse* response) const;
  absl::Status GetItems(const v1::GetItemsRequest& request, v1::GetItemsResponse* response) const;

  // ---- Models.
  absl::Status ListModels(const v1::ListModelsRequest& request, v1::ListModelsResponse* response) const;
  absl::Status LoadModel(const v1::LoadModelRequest& request, v1::LoadModelResponse* response) const;
  absl::Status UnloadModel(const v1::UnloadModelRequest& request, v1::UnloadModelResponse* response) const;
  absl::Status SetLabel(const v1::SetLabelRequest& request, v1::SetLabelResponse* response) const;
  absl::Status SetCalibration(const v1::SetCalibrationRequest& request, v1::SetCalibrationResponse* response) const;

  // ---- Store.
  absl::Status Checkpoint(const v1::CheckpointRequest& request, v1::CheckpointResponse* response) const;
  absl::Status Verify(const v1::VerifyRequest& request, v1::VerifyResponse* response) const;

 private:
  void AppendTogether(std::span<const StreamBatch> batches) const;

  Engine* const engine_;
  Clock* const clock_;
  const Options options_;
};

}  // namespace backstory::rpc

#endif  // BACKSTORY_SERVING_RPC_HANDLERS_H_
