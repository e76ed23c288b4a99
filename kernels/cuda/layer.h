// What stands around attention in a layer of GRAB, on Hopper (sm_90a): the projections before it, everything after it,
// and the head after the last layer. A layer is five launches then: one of Project, Attend, three of Finish. Post-norm
// layers whose channels all have the same widths. Needs no CUDA header. models/grab/cuda uses them where the widths
// fit.
//
//   Project:  y = z W_qkv^T + b,  bias = W_bias z^T
//   Finish:   x = LN1(x + attended W_o^T);  x = LN2(x + W_2 relu(W_1 x + b_1) + b_2);
//             x_c += sum_{i != c} sigmoid(g_i) x_i,  g = G [x_1 .. x_C] + b_g  (the next layer's target mixing);  z = x
//   Head:     logits = W_2 relu(W_1 concat + b_1) + b_2
//
// Matrices and what they multiply are bf16, sums, norms, gates and the residual stream x fp32. A row's bits depend on
// its own inputs and the launch's number of rows alone. All channels are in one launch; matrices are row-major
// [channels][out][in], one channel's after the other's. Times: tests/bench/RESULTS.md.
//
// With overlap_previous (programmatic dependent launch) weights, biases and x are read before the stream's previous
// kernel is over: x must be older than that kernel. Off where the previous node of a captured graph is no kernel.
#ifndef BACKSTORY_KERNELS_CUDA_LAYER_H_
#define BACKSTORY_KERNELS_CUDA_LAYER_H_

#include <cstdint>

namespace backstory::cuda {

// All pointers are the device's, 16-byte aligned. Each call enqueues on `stream` (a cudaStream_t) and returns nullptr,
// or what is wrong; the text is static. Allocates nothing; safe from any thread; may be captured into a graph.

struct ProjectArgs {
  int rows = 0;  // of each channel, a multiple of 4
  int channels = 1;
  int in = 0;                    // width of z: a multiple of 64
  int out = 0;                   // of y: a multiple of 128
  int bias_out = 0;              // heads * segments; 0: none
  const void* z = nullptr;       // bf16 [channels][rows][in]
  const void* w = nullptr;       // bf16 [channels][out][in]
  const void* b = nullptr;       // bf16 [channels][out]; may be nullptr
  const void* w_bias = nullptr;  // bf16 [channels][bias_out][in]
  void* y = nullptr;             // bf16 [channels][rows][out]
  float* bias = nullptr;         // fp32 [channels][bias_out][rows]: AttendArgs::bias with a stride of `rows`
  bool overlap_previous = false;
};

const char* Project(const ProjectArgs& args, void* stream);
// Whether Project has a kernel for these widths.
bool ProjectFits(int in, int out, int bias_out);

struct FinishArgs {
  int rows = 0;                                               // of each channel
  int channels = 1;                                           // with mixing: 2
  int d = 0;                                                  // a multiple of 128, at most 512
  int wide = 0;                                               // heads * d_h: a multiple of 64
  int ffn = 0;                                                // a multiple of 128
  const void* attended = nullptr;                             // bf16 [channels][rows][wide]
  const void *w_o = nullptr, *w_1 = nullptr, *w_2 = nullptr;  // bf16 [channels][d][wide], [ffn][d], [d][ffn]
  const void* b_1 = nullptr;                                  // bf16 [channels][ffn]
  const float* b_2 = nullptr;                                 // fp32 [channels][d], as all that follow
  const float *n1_g = nullptr, *n1_b = nullptr, *n2_g = nullptr, *n2_b = nullptr;
  const float* gate_w = nullptr;  // [channels (from)][channels (gate)][d]; nullptr: no mixing
  const float* gate_b = nullptr;  // [channels]
  float* x = nullptr;             // fp32 [channels][rows][d]: the layer's input, and its result (mixed for the next)
  void* z = nullptr;              // bf16 [channels][rows][d]: the result once more; also working memory
  void* inner = nullptr;          // bf16 [channels][rows][ffn]: working memory
  void* concat = nullptr;         // bf16 [rows][channels][d]: the result for the head, instead of x and z; or nullptr
  bool inner_only = false;        // ends with `inner`, for a caller that does the rest otherwise
  bool overlap_previous = false;  // of the first launch; the others overlap anyway
};

const char* Finish(const FinishArgs& args, void* stream);
bool FinishFits(int channels, int d, int wide, int ffn, bool mixing);

struct HeadArgs {
  int rows = 0;
  int in = 0;                                                  // channels * d: a multiple of 64
  int hidden = 0;                                              // a multiple of 128, at most 1024
  int tasks = 1;                                               // 1 or 2
  const void* concat = nullptr;                                // bf16 [rows][in]
  const void* w_1 = nullptr;                                   // bf16 [hidden][in]
  const float *b_1 = nullptr, *w_2 = nullptr, *b_2 = nullptr;  // [hidden], [tasks][hidden], [tasks]
  float* logits = nullptr;                                     // fp32 [rows][tasks]; may be pinned host memory
  bool overlap_previous = false;
};

const char* Head(const HeadArgs& args, void* stream);
bool HeadFits(int in, int hidden, int tasks);

}  // namespace backstory::cuda

#endif  // BACKSTORY_KERNELS_CUDA_LAYER_H_
