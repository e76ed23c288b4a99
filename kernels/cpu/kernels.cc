// One source, compiled once per machine target by foreach_target.h; the machine picks at run time.
#include <vector>

#include "kernels/cpu/targets.h"

// clang-format off: the order matters.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/kernels.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "hwy/highway.h"
#include "kernels/cpu/attend-inl.h"
#include "kernels/cpu/fold-inl.h"
#include "kernels/cpu/gemm-inl.h"
#include "kernels/cpu/merge-inl.h"
#include "kernels/cpu/ops-inl.h"
#include "kernels/cpu/rowwise-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace backstory {
namespace HWY_NAMESPACE {

template <class Bf16Ops>
constexpr KernelTable TableOf(const char* target) {
  return {.target = target,
          .gemm = Gemm<Bf16Ops>,
          .attend = Attend<Bf16Ops>,
          .attend_mass = AttendMass<Bf16Ops>,
          .fold_bias = FoldBias<Bf16Ops>,
          .merge = Merge,
          .layer_norm = LayerNorm,
          .moments = RowMoments,
          .add = Add,
          .sigmoid = Sigmoid,
          .sigmoid_gate = SigmoidGate,
          .mix = Mix,
          .embedding_bag = EmbeddingBag};
}

const KernelTable* Table() {
  static const KernelTable kTable = TableOf<WidenOps>(hwy::TargetName(HWY_TARGET));
  return &kTable;
}

// The same with the machine's bf16 products; nullptr where no such machine runs this target.
const KernelTable* DotTable() {
#if defined(BACKSTORY_BF16_DOT) && HWY_TARGET == HWY_AVX3
  static const KernelTable kTable = TableOf<DotOps>("AVX3_BF16");
  return &kTable;
#else
  return nullptr;
#endif
}

}  // namespace HWY_NAMESPACE
}  // namespace backstory
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace backstory {

HWY_EXPORT(Table);
HWY_EXPORT(DotTable);

bool HasBf16Dot() {
#ifdef BACKSTORY_BF16_DOT
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
  return false;
#endif
}

std::vector<const KernelTable*> CpuKernels() {
  std::vector<const KernelTable*> tables;
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    const KernelTable* dot = HasBf16Dot() ? HWY_DYNAMIC_DISPATCH(DotTable)() : nullptr;
    if (dot != nullptr) tables.push_back(dot);
    tables.push_back(HWY_DYNAMIC_DISPATCH(Table)());
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  return tables;
}

}  // namespace backstory
#endif  // HWY_ONCE
