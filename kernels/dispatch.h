// The table of kernels, one per machine target. Chosen once, for the best target of this machine; tests swap it.
#ifndef BACKSTORY_KERNELS_DISPATCH_H_
#define BACKSTORY_KERNELS_DISPATCH_H_

#include <span>
#include <string_view>

#include "kernels/attend.h"
#include "kernels/fold.h"
#include "kernels/gemm.h"
#include "kernels/rowwise.h"

namespace backstory {

// Kernels allocate nothing, keep no state and may run at once in any number of threads.
struct KernelTable {
  const char* target = "";  // "ref", "AVX2", ...
  void (*gemm)(const GemmArgs&) = nullptr;
  void (*attend)(const AttendArgs&) = nullptr;
  void (*attend_mass)(const AttendMassArgs&) = nullptr;
  void (*fold_bias)(const FoldBiasArgs&) = nullptr;
  void (*merge)(const MergeArgs&) = nullptr;
  void (*layer_norm)(const LayerNormArgs&) = nullptr;
  Moments (*moments)(const float* x, size_t n) = nullptr;
  void (*add)(const float* y, size_t n, float* x) = nullptr;              // x += y
  void (*sigmoid)(size_t n, float* x) = nullptr;                          // x = 1 / (1 + exp(-x))
  void (*sigmoid_gate)(const float* gate, size_t n, float* x) = nullptr;  // x *= sigmoid(gate)
  void (*mix)(const MixArgs&) = nullptr;
  void (*embedding_bag)(const EmbeddingBagArgs&) = nullptr;
};

// The table in force.
const KernelTable& Kernels();
// The readable twin, then every compiled target that this machine can run, best first.
std::span<const KernelTable* const> AllKernels();
const KernelTable& RefKernels();

// Swaps the table in force for all threads while alive. For tests and benchmarks.
class ScopedKernels {
 public:
  explicit ScopedKernels(const KernelTable& table);
  ~ScopedKernels();
  ScopedKernels(const ScopedKernels&) = delete;
  ScopedKernels& operator=(const ScopedKernels&) = delete;

 private:
  const KernelTable* before_;
};

}  // namespace backstory

#endif  // BACKSTORY_KERNELS_DISPATCH_H_
