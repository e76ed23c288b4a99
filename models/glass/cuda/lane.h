// The memory of one launch at a time, and the CUDA graphs that run in it. Private to model.cc and lane.cc.
#ifndef BACKSTORY_MODELS_GLASS_CUDA_LANE_H_
#define BACKSTORY_MODELS_GLASS_CUDA_LANE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "models/glass/cuda/kernels.h"
#include "models/glass/cuda/model.h"
#include "models/grab/cuda/device.h"

// As cuda_runtime.h declares them.
struct CUstream_st;
struct CUgraphExec_st;

namespace backstory::glass::cuda {

class TrieOnCard final : public CudaTrie {
 public:
  TrieArrays arrays{};
  grab::CudaBuffer memory;
  size_t bytes() const override { return memory.bytes(); }
};

// Not thread-safe.
class Lane {
 public:
  struct Limits {
    size_t users, rows;  // of a launch
  };
  static absl::StatusOr<std::unique_ptr<Lane>> Create(const Config& config, const Model& model, const Limits& limits,
                                                      std::shared_ptr<grab::CudaDevice> device);
  ~Lane();
  // Requests of one launch, within the limits and checked.
  absl::Status Run(std::span<const CudaGlassRequest> requests, std::span<CudaGlassReply> replies);
  size_t bytes() const { return memory_.bytes(); }

  // For benchmarks: runs the requests `repeats` times and again kernel by kernel. Medians in ms, between events.
  struct Times {
    float whole = 0;  // inputs to the card, graph, beams to the host
    float graph = 0;  // the graph alone, with the copy of the beams
    float encode = 0, step[3] = {}, select[3] = {};
  };
  absl::StatusOr<Times> Time(std::span<const CudaGlassRequest> requests, int repeats);

 private:
  // Launches of up to `users` users and `groups` groups of one layout share a graph: what is missing exits at once.
  struct Program {
    CUgraphExec_st* graph = nullptr;
    Batch batch;
    Layout layout;
  };
  Lane(const Config& config, const Model& model, std::shared_ptr<grab::CudaDevice> device)
      : config_(config), model_(model), device_(std::move(device)) {}
  Layout LayoutOf(std::span<const CudaGlassRequest> requests) const;
  absl::StatusOr<const Program*> ProgramOf(int users, int groups, const Layout& layout);
  const char* Launch(const Program& program) const;
  absl::Status Capture(Program* program);
  absl::StatusOr<const Program*> Prepare(std::span<const CudaGlassRequest> requests, size_t* bytes);
  // Writes what the card reads to pinned memory: [users] UserInput, [groups] Group, then what they point to.
  size_t WriteInputs(std::span<const CudaGlassRequest> requests, const Program& program);
  void WriteRows(const CudaUser& user, UserInput* input, char* base, size_t* at) const;
  void ReadReplies(std::span<const CudaGlassRequest> requests, const Program& program,
                   std::span<CudaGlassReply> replies) const;
  absl::Status GrowInputs(size_t bytes);

  const Config& config_;
  const Model& model_;
  const std::shared_ptr<grab::CudaDevice> device_;
  CUstream_st* stream_ = nullptr;
  grab::CudaBuffer memory_, input_, pinned_input_, pinned_output_;
  Batch batch_{};                                          // scratch
  char* output_ = nullptr;                                 // on the card: steps, then live
  std::map<std::tuple<int, int, int>, Program> programs_;  // by users, groups and rows of a group
};

}  // namespace backstory::glass::cuda

#endif  // BACKSTORY_MODELS_GLASS_CUDA_LANE_H_
