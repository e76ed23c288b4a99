// The best continuations of a user's beams, a block per user. A candidate is one 60-bit key: falling score, then
// parent, then child, so that the order is total and ties go to the better parent, then the smaller token, as in
// beam_search.h.
#include <cuda_runtime.h>

#include "kernels/cuda/launch.cuh"
#include "models/glass/cuda/kernels.h"

namespace backstory::glass::cuda {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32;
constexpr int kSorted = 256;  // so many keys are sorted as they are
constexpr int kKept = 8192;   // so many keys are kept between passes; more are computed again
constexpr int kDigitBits = 11, kBins = 1 << kDigitBits;
constexpr int kChildBits = 18, kIndexBits = 10 + kChildBits, kKeyBits = 32 + kIndexBits;
using Key = unsigned long long;
constexpr Key kNone = ~Key{0};

__device__ Key MakeKey(float score, uint32_t parent, uint32_t child) {
  if (isnan(score)) score = -INFINITY;
  uint32_t bits = __float_as_uint(score);
  bits = bits >> 31 ? bits : ~(bits | 0x80000000u);  // rises as the score falls
  return static_cast<Key>(bits) << kIndexBits | parent << kChildBits | child;
}
__device__ float ScoreOf(Key key) {
  const uint32_t bits = static_cast<uint32_t>(key >> kIndexBits);
  return __uint_as_float(bits >> 31 ? bits : ~bits & 0x7fffffffu);
}

struct Children {
  uint32_t first, count;  // nodes, or 0 and how many tokens
};

struct User {
  const Model& m;
  const Batch& batch;
  const UserInput& input;
  int step, live;

  __device__ const Step& Before(int beam) const {
    return batch.steps[(step - 1) * batch.rows_max + input.first_row + beam];
  }
  __device__ Children ChildrenOf(int beam) const {
    if (input.mode == 0) return {0, static_cast<uint32_t>(m.vocabulary)};
    if (input.mode == 1) return {0, static_cast<uint32_t>(m.levels[step])};
    if (step == 0) return {0, input.trie.roots};
    const uint32_t* begin = input.trie.begin[step - 1] + Before(beam).node;
    return {begin[0], begin[1] - begin[0]};
  }
  __device__ uint32_t Token(const Children& children, uint32_t child) const {
    if (input.mode == 0) return child;
    return m.offset[step] + (input.mode == 1 ? child : input.trie.codes[step][children.first + child]);
  }
  // visit(key) for all candidates, all threads.
  template <typename Visit>
  __device__ void ForEach(const Visit& visit) const {
    const int width = (m.vocabulary + 7) / 8 * 8;
    const bool one = live == 1;  // then all threads take the one beam
    for (int beam = one ? 0 : threadIdx.x / 32; beam < live; beam += kWarps) {
      const Children children = ChildrenOf(beam);
      const int row = input.first_row + beam;
      const float* logits = batch.logits + static_cast<int64_t>(row) * width;
      const float lse = batch.lse[row], score_before = step == 0 ? 0.0f : Before(beam).score;
      for (uint32_t child = one ? threadIdx.x : threadIdx.x % 32; child < children.count;
           child += one ? kThreads : 32) {
        float score = logits[Token(children, child)] - lse;
        if (step == 0 && m.first_step_epsilon > 0) {
          score = static_cast<float>(log(exp(static_cast<double>(score)) + m.first_step_epsilon));
        }
        visit(MakeKey(score + score_before, beam, child));
      }
    }
  }
};

// Ascending, `size` a power of two. What one warp can take in a step needs no barrier of all.
__device__ void Sort(Key* keys, int size) {
  if (size <= 64 && threadIdx.x >= 32) size = 0;
  const bool alone = size <= 64;
  for (int width = 2; width <= size; width *= 2) {
    for (int stride = width / 2; stride > 0; stride /= 2) {
      for (int i = threadIdx.x; i < size / 2; i += kThreads) {
        const int low = 2 * stride * (i / stride) + i % stride, high = low + stride;
        const Key a = keys[low], b = keys[high];
        if ((a > b) == ((low & width) == 0)) keys[low] = b, keys[high] = a;
      }
      if (alone) {
        __syncwarp();
      } else {
        __syncthreads();
      }
    }
  }
  __syncthreads();
}

// The bin of the `wanted`-th smallest, how many lie in bins before it, and how many in it. bins: counts; all threads.
__device__ void FindBin(uint32_t* bins, uint32_t wanted, uint32_t* answer) {
  if (threadIdx.x < 32) {  // one warp: 64 bins a lane
    constexpr int kEach = kBins / 32;
    uint32_t sum = 0;
    for (int i = 0; i < kEach; ++i) sum += bins[threadIdx.x * kEach + (i + threadIdx.x) % kEach];
    uint32_t before = sum;
    for (int step = 1; step < 32; step *= 2) {
      const uint32_t other = __shfl_up_sync(~0u, before, step);
      if (threadIdx.x >= step) before += other;
    }
    before -= sum;
    if (before < wanted && wanted <= before + sum) {
      int bin = threadIdx.x * kEach;
      while (before + bins[bin] < wanted) before += bins[bin++];
      answer[0] = bin, answer[1] = before, answer[2] = bins[bin];
    }
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads) SelectKernel(const __grid_constant__ Model m, const Batch batch, int step) {
  extern __shared__ Key keys[];  // [kKept]
  __shared__ alignas(8) uint32_t bins[kBins];
  __shared__ uint32_t total, answer[3];
  asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;" ::: "memory");  // as JoinChain (tile.cuh)
  const UserInput& input = batch.user[blockIdx.x];
  if (input.rows < 0) return;
  const User user{m, batch, input, step, step == 0 ? 1 : batch.live[(step - 1) * batch.users + blockIdx.x]};
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  user.ForEach([&](Key key) {
    const uint32_t at = atomicAdd(&total, 1);
    if (at < kKept) keys[at] = key;
  });
  __syncthreads();
  const uint32_t count = total, wanted = min(count, static_cast<uint32_t>(input.beam));
  uint32_t sorted = count;  // keys to sort, at the front
  if (count > kSorted) {
    // Radix select: after each digit, `prefix` is what the wanted-th smallest key begins with.
    const bool kept = count <= kKept;
    Key prefix = 0;
    uint32_t rest = wanted;  // of the keys that begin with prefix
    int bits = kKeyBits;     // below the prefix
    while (bits > 0) {
      const int digit = min(kDigitBits, bits), shift = bits - digit;
      for (int i = threadIdx.x; i < kBins; i += kThreads) bins[i] = 0;
      __syncthreads();
      const auto add = [&](Key key) {
        if (bits == kKeyBits || key >> bits == prefix) atomicAdd(&bins[key >> shift & ((1u << digit) - 1)], 1);
      };
      if (kept) {
        for (uint32_t i = threadIdx.x; i < count; i += kThreads) add(keys[i]);
      } else {
        user.ForEach(add);
      }
      __syncthreads();
      FindBin(bins, rest, answer);
      prefix = prefix << digit | answer[0];
      rest -= answer[1];
      bits = shift;
      if (answer[2] == rest) break;  // the whole bin is wanted
      __syncthreads();
    }
    __syncthreads();
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    // At most `wanted` <= 1,024 keys: one a thread, written behind a barrier because they lie among those read.
    Key* best = reinterpret_cast<Key*>(bins);
    static_assert(sizeof(bins) >= 1024 * sizeof(Key));
    const auto take = [&](Key key) {
      if (key >> bits <= prefix) best[atomicAdd(&total, 1)] = key;
    };
    if (kept) {
      for (uint32_t i = threadIdx.x; i < count; i += kThreads) take(keys[i]);
    } else {
      user.ForEach(take);
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < wanted; i += kThreads) keys[i] = best[i];
    sorted = wanted;
  }
  int size = 2;
  while (size < static_cast<int>(sorted)) size *= 2;
  for (int i = sorted + threadIdx.x; i < size; i += kThreads) keys[i] = kNone;
  __syncthreads();
  Sort(keys, size);
  for (uint32_t i = threadIdx.x; i < wanted; i += kThreads) {
    const uint32_t parent = static_cast<uint32_t>(keys[i] >> kChildBits) & 1023;
    const uint32_t child = static_cast<uint32_t>(keys[i]) & ((1u << kChildBits) - 1);
    const Children children = user.ChildrenOf(parent);
    Step out;
    out.score = ScoreOf(keys[i]);
    out.token = user.Token(children, child);
    out.node = input.mode == 2 ? children.first + child : 0;
    out.parent = static_cast<uint16_t>(parent);
    // A token outside level 1 reads the nearest bucket, as in the public code.
    out.first_code =
        step > 0 ? user.Before(parent).first_code
                 : static_cast<uint16_t>(min(max(static_cast<int>(out.token) - m.offset[0], 0), m.levels[0] - 1));
    batch.steps[step * batch.rows_max + input.first_row + i] = out;
  }
  if (threadIdx.x == 0) batch.live[step * batch.users + blockIdx.x] = wanted;
}

}  // namespace

const char* LaunchSelect(const Model& model, const Batch& batch, int step, void* stream) {
  static std::atomic<uint64_t> allowed{0};
  constexpr int kBytes = kKept * sizeof(Key);
  cudaError_t error =
      backstory::cuda::Allow(SelectKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes, &allowed);
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(batch.users));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kBytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = 1;
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, SelectKernel, model, batch, step);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace backstory::glass::cuda
