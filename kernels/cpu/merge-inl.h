// Joins parts of one softmax, for one target. Included once per target.
#if defined(BACKSTORY_KERNELS_CPU_MERGE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BACKSTORY_KERNELS_CPU_MERGE_INL_H_
#undef BACKSTORY_KERNELS_CPU_MERGE_INL_H_
#else
#define BACKSTORY_KERNELS_CPU_MERGE_INL_H_
#endif

#include <algorithm>
#include <cmath>

#include "hwy/highway.h"
#include "kernels/attend.h"
#include "kernels/cpu/logits-inl.h"
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace backstory {
namespace HWY_NAMESPACE {

void Merge(const MergeArgs& m) {
  const Tag d;
  for (size_t i = 0; i < m.rows; ++i) {
    float top = kMinusInf;
    for (const float* lse : m.lse) top = std::max(top, lse[i]);
    float sum = 0;
    float* out = m.out_o + i * m.d_v;
    for (size_t part = 0; part < m.lse.size(); ++part) {
      const float lse = m.lse[part][i];
      const float weight = lse == kMinusInf ? 0.0f : hn::GetLane(Exp2(hn::Set(d, (lse - top) * kLog2E)));
      const float* o = m.o[part] + i * m.d_v;
      // The first part is read before it is overwritten, element by element, so it may be the output.
      for (size_t x = 0; x < m.d_v; ++x) {
        const float add = weight > 0 ? weight * o[x] : 0.0f;
        out[x] = part == 0 ? add : out[x] + add;
      }
      sum += weight;
    }
    const float inverse = sum > 0 ? 1.0f / sum : 0.0f;
    for (size_t x = 0; x < m.d_v; ++x) out[x] *= inverse;
    m.out_lse[i] =
        sum > 0 ? static_cast<float>(static_cast<double>(top) + std::log(static_cast<double>(sum))) : kMinusInf;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace backstory
HWY_AFTER_NAMESPACE();

#endif  // BACKSTORY_KERNELS_CPU_MERGE_INL_H_
