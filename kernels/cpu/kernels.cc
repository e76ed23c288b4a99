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
#include "kernels/cpu/gemm-inl.h"
#include "kernels/cpu/merge-inl.h"
#include "kernels/cpu/rowwise-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace backstory {
namespace HWY_NAMESPACE {

const KernelTable* Table() {
  static const KernelTable kTable{.target = hwy::TargetName(HWY_TARGET),
                                  .gemm = Gemm,
                                  .attend = Attend,
                                  .attend_mass = AttendMass,
                                  .merge = Merge,
                                  .layer_norm = LayerNorm,
                                  .moments = RowMoments,
                                  .add = Add,
                                  .sigmoid = Sigmoid,
                                  .sigmoid_gate = SigmoidGate,
                                  .mix = Mix,
                                  .embedding_bag = EmbeddingBag};
  return &kTable;
}

}  // namespace HWY_NAMESPACE
}  // namespace backstory
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace backstory {

HWY_EXPORT(Table);

std::vector<const KernelTable*> CpuKernels() {
  std::vector<const KernelTable*> tables;
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    tables.push_back(HWY_DYNAMIC_DISPATCH(Table)());
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  return tables;
}

}  // namespace backstory
#endif  // HWY_ONCE
