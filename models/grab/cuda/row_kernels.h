// The steps of a scoring pass between matrix products and attention, on the card. Pointers are the card's; needs no
// CUDA header. Each call enqueues one launch on `stream` (a cudaStream_t) and returns nullptr or a static text of what
// failed.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_ROW_KERNELS_H_
#define BACKSTORY_MODELS_GRAB_CUDA_ROW_KERNELS_H_

#include <cstdint>

namespace backstory::grab {

// For each row, over all channels: x = LN(x) with n (post-norm's second), then target mixing, then z = LN(x) with z_n
// (pre-norm's first) or x, rounded to bf16. Steps without pointers are left out.
struct CudaRowsArgs {
  int rows = 0;
  int channels = 1;
  int d = 0;                       // values of a row
  int stride = 0;                  // from row to row, >= d and even; columns beyond d are written as zero
  int64_t in_channel_stride = 0;   // of `in`; 0: all channels start from the same rows
  int64_t out_channel_stride = 0;  // of `x` and `z`
  const float* in = nullptr;
  const float *n_g = nullptr, *n_b = nullptr;        // [channels][stride]
  const float *gate_w = nullptr, *gate_b = nullptr;  // [channels (from)][channels (gate)][stride], [channels]
  const float *z_g = nullptr, *z_b = nullptr;        // [channels][stride]
  float* x = nullptr;                                // may be `in`
  void* z = nullptr;                                 // bf16
  void* concat = nullptr;                            // bf16 [rows][channels * stride]: x once more, for the head
};
const char* CudaRows(const CudaRowsArgs& args, void* stream);

// logits[r][t] = hidden[r] . w[t] + b[t]; `logits` may be pinned host memory.
struct CudaHeadArgs {
  int rows = 0, hidden = 0, stride = 0, tasks = 1;  // stride a multiple of 8, zeroes beyond hidden
  const float* hidden_rows = nullptr;               // [rows][stride]
  const float* w = nullptr;                         // [tasks][stride]
  const float* b = nullptr;                         // [tasks]
  float* logits = nullptr;                          // [rows][tasks]
};
const char* CudaHead(const CudaHeadArgs& args, void* stream);

// One key copied to a scratch page with its position and time bias in it (FOLDED pages), in every layer.
struct CudaFoldRow {
  int32_t from = 0;  // block * 128 + row of the pool; -1: zeroes
  int32_t to = 0;
  uint16_t position = 0;
  uint16_t time = 0;
  int32_t channel = 0;
};
struct CudaFoldArgs {
  int layers = 0, channels = 0, heads = 0, d_h = 0;  // d_h a multiple of 8
  int n_pos = 0, n_time = 0;
  const int32_t* count = nullptr;  // of rows, on the card
  const CudaFoldRow* rows = nullptr;
  const float* pos = nullptr;   // [layers][channels][n_pos][d_h]
  const float* time = nullptr;  // [layers][channels][n_time][d_h]
  void* pool = nullptr;         // blocks [layer][K, V][head][128][d_h] bf16
  int blocks = 0;               // of threads
};
const char* CudaFold(const CudaFoldArgs& args, void* stream);

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_ROW_KERNELS_H_
