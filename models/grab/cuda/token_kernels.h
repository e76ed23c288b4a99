// The tokenizer network of candidates on the card, between its two products (models/grab/token_net.h has the algebra).
// Pointers are the card's; needs no CUDA header. Each call enqueues one launch and returns nullptr or what failed.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_TOKEN_KERNELS_H_
#define BACKSTORY_MODELS_GRAB_CUDA_TOKEN_KERNELS_H_

#include <cstdint>

namespace backstory::grab {

inline constexpr int kCudaTokenFields = 32;

struct CudaIdRange {
  uint32_t begin = 0, end = 0;  // of the launch's ids
};

struct CudaTokenArgs {
  int rows = 0;
  int fields = 0, embedding = 0, dense = 0;
  int v_stride = 0;  // of a part of v: fields * embedding + dense, padded
  // Of every row of v and h: 1, or 3: the bf16 nearest, what it leaves of the value, and the first again. Against
  // weights whose parts are W, W, W's rest the product then is nearly fp32's.
  int parts = 1;
  int hidden = 0, d = 0;  // padded widths of the two halves of `a`
  int user_columns = 0;   // of the user side, for the joint norm
  const float* table[kCudaTokenFields] = {};
  const CudaIdRange* ranges = nullptr;  // [fields][rows]
  const uint32_t* ids = nullptr;
  const float* dense_values = nullptr;  // [rows][dense]
  const int32_t* user = nullptr;        // [rows]: which of `users`
  const float* users = nullptr;         // [users][2 + hidden + d]: mean, centred sum of squares, product
  const float* column_sums = nullptr;   // [hidden + d], of the user side
  const float* bias = nullptr;          // [hidden + d]
  void* v = nullptr;                    // bf16 [rows][parts][v_stride]: normalised
  float* moments = nullptr;             // [rows][2]: mean, 1 / deviation
  float* a = nullptr;                   // fp32 [rows][hidden + d]: v times the first matrices
  void* h = nullptr;                    // bf16 [rows][parts][hidden]
  float* e = nullptr;                   // fp32 [rows][d]
};

const char* CudaPoolTokens(const CudaTokenArgs& args, void* stream);   // ids -> v, moments
const char* CudaTokenHidden(const CudaTokenArgs& args, void* stream);  // a -> h
const char* CudaGateTokens(const CudaTokenArgs& args, void* stream);   // e times the gates of a

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_TOKEN_KERNELS_H_
