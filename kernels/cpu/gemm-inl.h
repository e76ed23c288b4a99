// Dense layers for one target. Included once per target.
#if defined(BACKSTORY_KERNELS_CPU_GEMM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BACKSTORY_KERNELS_CPU_GEMM_INL_H_
#undef BACKSTORY_KERNELS_CPU_GEMM_INL_H_
#else
#define BACKSTORY_KERNELS_CPU_GEMM_INL_H_
#endif

#include <algorithm>

#include "hwy/highway.h"
#include "kernels/cpu/tile-inl.h"
#include "kernels/gemm.h"

HWY_BEFORE_NAMESPACE();
namespace backstory {
namespace HWY_NAMESPACE {

// Rows that share one pass over the panels: A stays in L1 while B streams from L2.
constexpr size_t kGemmRows = 24;
constexpr size_t kGemmPanels = 4;

HWY_INLINE void FinishGemm(const GemmArgs& a, size_t rows, size_t column, size_t columns, const float* from,
                           size_t from_stride, float* to) {
  const Tag d;
  for (size_t r = 0; r < rows; ++r) {
    const float* x = from + r * from_stride;
    float* y = to + r * a.ldc;
    size_t j = 0;
    for (; j + kLanes <= columns; j += kLanes) {
      Vec v = hn::LoadU(d, x + j);
      if (a.bias != nullptr) v = hn::Add(v, hn::LoadU(d, a.bias + column + j));
      if (a.relu) v = hn::Max(v, hn::Zero(d));
      hn::StoreU(v, d, y + j);
    }
    for (; j < columns; ++j) {
      float v = x[j];
      if (a.bias != nullptr) v += a.bias[column + j];
      y[j] = a.relu ? std::max(v, 0.0f) : v;
    }
  }
}

void Gemm(const GemmArgs& a) {
  const size_t k = a.b->k(), n = a.b->n();
  const size_t whole = n / kPanel;  // panels without padding
  HWY_ALIGN float edge[kGemmRows * kPanel];
  for (size_t i = 0; i < a.m; i += kGemmRows) {
    const size_t rows = std::min(kGemmRows, a.m - i);
    const float* x = a.a + i * a.lda;
    float* y = a.c + i * a.ldc;
    for (size_t p = a.first_panel; p < whole; p += kGemmPanels) {
      const size_t panels = std::min(kGemmPanels, whole - p);
      TilePanels<false>(x, a.lda, rows, a.b->panel(p), k * kPanel, panels, k, y + p * kPanel, a.ldc);
      if (a.bias != nullptr || a.relu) {
        FinishGemm(a, rows, p * kPanel, panels * kPanel, y + p * kPanel, a.ldc, y + p * kPanel);
      }
    }
    if (whole * kPanel < n && a.first_panel <= whole) {
      TileRows<false>(x, a.lda, rows, a.b->panel(whole), k, edge, kPanel);
      FinishGemm(a, rows, whole * kPanel, n - whole * kPanel, edge, kPanel, y + whole * kPanel);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace backstory
HWY_AFTER_NAMESPACE();

#endif  // BACKSTORY_KERNELS_CPU_GEMM_INL_H_
