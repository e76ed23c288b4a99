// The inner tiles of bf16 on machines with AVX512_BF16 (VDPBF16PS), which Highway 1.0.3 does not reach. Private to
// kernels/cpu; nothing here may be called unless HasBf16Dot().
#ifndef BACKSTORY_KERNELS_CPU_BF16_DOT_H_
#define BACKSTORY_KERNELS_CPU_BF16_DOT_H_

#include <stddef.h>
#include <stdint.h>

namespace backstory {

// Compiled in, and this machine and its operating system run it.
bool HasBf16Dot();

// C[r][16 p + j] = init + sum over i < pairs of a[r][2i] panel_p[i][j][0] + a[r][2i + 1] panel_p[i][j][1], one chain
// per element whatever rows and panels; init is C (add) or zero. The instruction takes denormals for zero, in and out.
struct Bf16DotArgs {
  const uint16_t* a;  // [rows][2 * pairs], row stride lda elements
  size_t lda;
  size_t rows;
  const uint16_t* panel;  // [panels], panel_stride elements apart, each [pairs][16][2], 64-byte aligned
  size_t panel_stride;
  size_t panels;
  size_t pairs;
  float* c;  // [rows][16 * panels], row stride ldc
  size_t ldc;
  bool add;
  const char* ahead;  // memory to bring into L2 meanwhile, spread over the work
  size_t ahead_bytes;
  float* maxima;  // [rows][16], 64-byte aligned, or nullptr: set to the largest result of each row, lane by lane
};
void Bf16DotPanels(const Bf16DotArgs& args);

// Softmax weights of one page, row by row: logits s[r][first, last) (multiples of 16) become bf16 weights
// exp2(s - top[r]) over the same memory, packed from the row's start on; top[r] = infinity makes them zero. The
// unrounded weights are added to sums[r], lane by lane; zero weights at either end leave no trace in it. Relative error
// <= 2e-7 down to 2^-126, below that something in [0, 2^-126].
struct WeightsArgs {
  float* s;  // [rows], row stride s_stride, 64-byte aligned rows
  size_t s_stride;
  size_t rows;
  size_t first;
  size_t last;
  const float* top;  // [rows], >= the row's logits
  float* sums;       // [rows][16], 64-byte aligned
};
void Bf16Weights(const WeightsArgs& args);

// Pairs of bf16 plus floats, rounded again: to[i][j][b] = from[i][j][b] + add[2 i + b][j].
struct Bf16AddArgs {
  const uint16_t* from;  // [pairs][16][2], 64-byte aligned
  const float* add;      // [2 * pairs][16], 64-byte aligned
  size_t pairs;
  uint16_t* to;  // as from
};
void Bf16Add(const Bf16AddArgs& args);

// n floats -> bf16 (ToBf16 of kernels/dtype.h), zero-padded to whole pairs.
void Bf16Convert(const float* from, size_t n, uint16_t* to);

}  // namespace backstory

#endif  // BACKSTORY_KERNELS_CPU_BF16_DOT_H_
