// The memory of one scoring pass at a time. Private to network.cc and lane.cc.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_LANE_H_
#define BACKSTORY_MODELS_GRAB_CUDA_LANE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>

#include "kernels/cuda/attend.h"
#include "models/grab/cuda/gemm.h"
#include "models/grab/cuda/network.h"
#include "models/grab/cuda/row_kernels.h"

// As cuda_runtime.h declares them.
struct CUstream_st;
struct CUevent_st;
struct CUgraphExec_st;

namespace backstory::grab {

class Lane final : public CudaLane {
 public:
  static constexpr size_t kItemsMax = 32768, kEntriesMax = 32768, kFoldsMax = 131072;
  static constexpr size_t kPartBytes = size_t{160} << 20, kCounterBytes = size_t{1} << 20;

  // What travels to the card with every launch, at the same places in pinned memory and on the card.
  struct Inputs {
    static constexpr size_t kItemsAt = 64;
    static constexpr size_t kEntriesAt = kItemsAt + kItemsMax * sizeof(cuda::WorkItem);
    static constexpr size_t kFoldsAt = kEntriesAt + kEntriesMax * sizeof(cuda::PageEntry);
    static constexpr size_t kRowsAt = kFoldsAt + kFoldsMax * sizeof(CudaFoldRow);
    char* data = nullptr;
    int32_t* fold_count() const { return reinterpret_cast<int32_t*>(data); }
    cuda::WorkItem* items() const { return reinterpret_cast<cuda::WorkItem*>(data + kItemsAt); }
    cuda::PageEntry* entries() const { return reinterpret_cast<cuda::PageEntry*>(data + kEntriesAt); }
    CudaFoldRow* folds() const { return reinterpret_cast<CudaFoldRow*>(data + kFoldsAt); }
    float* rows() const { return reinterpret_cast<float*>(data + kRowsAt); }
  };

  // The products for one number of rows, which lanes share, and the captured launches.
  struct Products {
    std::unique_ptr<CudaGemm> latent, qkv, bias, out, ffn1, ffn2, head;
  };
  struct Program {
    std::shared_ptr<const Products> products;
    CUgraphExec_st* graph = nullptr;
  };

  static absl::StatusOr<Products> MakeProducts(const CudaWidths& widths, int rows,
                                               const std::shared_ptr<CudaGemmLibrary>& library);
  static absl::StatusOr<std::unique_ptr<CudaLane>> Create(const CudaWidths& widths, CudaDevice* device);
  ~Lane() override;

  float* rows() override { return host.rows(); }
  const float* logits() const override { return logits_.as<float>(); }
  void* stream() override { return cuda_stream; }
  float* rows_on_card() override { return card.rows(); }
  void* workspace() override { return workspace_; }
  float* logits_on_card() const { return static_cast<float*>(logits_.on_card()); }

  Inputs host, card;
  CUstream_st *cuda_stream = nullptr, *side_stream = nullptr;
  CUevent_st *fork = nullptr, *join = nullptr;
  // [channels][rows][..]; of kRowsMax rows.
  float* x = nullptr;        // fp32 [stride]
  void* z = nullptr;         // bf16 [stride]
  void* inner = nullptr;     // bf16 [inner], with a latent
  void* qkv = nullptr;       // bf16 [3 wide]
  float* bias = nullptr;     // fp32 [channels][heads][segments][rows]
  void* attended = nullptr;  // bf16 [wide]
  void* ffn = nullptr;       // bf16 [ffn]
  void* concat = nullptr;    // bf16 [rows][channels * stride]
  float* hidden = nullptr;   // fp32 [rows][hidden]
  void *parts = nullptr, *counters = nullptr, *workspace_ = nullptr, *side_workspace = nullptr;
  std::map<int, Program> programs;  // by rows
  int last_rows = 0;

 private:
  CudaBuffer pinned_, memory_, logits_;
};

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_LANE_H_
