// A few history rows through all layers in one launch. Appending one event is 77 MB of weights and K/V and next to no
// arithmetic: a launch a product would be mostly gaps. Pointers are the card's; needs no CUDA header.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_APPEND_H_
#define BACKSTORY_MODELS_GRAB_CUDA_APPEND_H_

#include <cstddef>
#include <cstdint>

#include "models/grab/cuda/history_kernels.h"
#include "models/grab/cuda/weights.h"

namespace backstory::grab {

inline constexpr int kCudaAppendTies = 64;    // tied rows of one appended row at most
inline constexpr int kCudaAppendSplits = 32;  // of a head's pages, at most

// 1..kCudaFewRows rows [first, first + rows) of one channel.
struct CudaAppendChannel {
  int channel = 0, first = 0, rows = 0;
  const int32_t* blocks = nullptr;        // [page] -> block of the pool
  const int32_t* bucket_begin = nullptr;  // [rows][n_time], as CudaHistoryRows
  const int32_t* ties = nullptr;          // [rows][kCudaAppendTies]: rows with the row's tie key
  int32_t tied[kCudaFewRows] = {};        // how many
  int32_t oldest[kCudaFewRows] = {};      // keys before are outside of a window
  int32_t action[kCudaFewRows] = {};
};

struct CudaAppendArgs {
  CudaWidths widths;
  bool post_norm = true;
  int active = 0;  // channels that get rows
  float scale = 1;
  const CudaLayerOffsets* layers = nullptr;  // [layers]
  const void* matrices = nullptr;            // bf16, as in CudaWeights
  const float* vectors = nullptr;
  size_t codes = 0, act = 0;
  float* x = nullptr;           // [active][kCudaFewRows][stride]: the token rows; destroyed
  void* inner = nullptr;        // bf16 [active][kCudaFewRows][inner], with a latent
  void* q = nullptr;            // bf16 [active][kCudaFewRows][wide]
  void* hidden = nullptr;       // bf16 [active][kCudaFewRows][ffn]
  float* parts = nullptr;       // [active][kCudaFewRows][heads][kCudaAppendSplits][2 + d_h]
  uint32_t* barrier = nullptr;  // 0 before the launch
  void* pool = nullptr;         // as CudaHistoryArgs
  CudaAppendChannel channel[kCudaHistoryChannels];
};

// What of x, q and so on a launch needs in all, in bytes.
struct CudaAppendRoom {
  size_t inner = 0, q = 0, hidden = 0, parts = 0;
};
CudaAppendRoom CudaAppendRoomOf(const CudaWidths& widths);

// Whether rows of these widths fit the kernel; if not, they go the way of many rows.
bool CudaAppendFits(const CudaWidths& widths);

// K/V of the rows to the pool, zeroes behind the last row of the last page. Enqueues one launch whose blocks wait for
// each other: all of them must fit on the card at once, else the launch is refused. nullptr or a static text.
// Beside other launches whose blocks wait for each other it leans on the card's order of dispatch as attend.h does.
const char* CudaAppend(const CudaAppendArgs& args, void* stream);

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_APPEND_H_
