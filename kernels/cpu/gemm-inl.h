// Dense layers for one target. Included once per target.
#if defined(BACKSTORY_KERNELS_CPU_GEMM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BACKSTORY_KERNELS_CPU_GEMM_INL_H_
#undef BACKSTORY_KERNELS_CPU_GEMM_INL_H_
#else
#define BACKSTORY_KERNELS_CPU_GEMM_INL_H_
#endif

#include <algorithm>

#include "hwy/highway.h"
#include "kernels/cpu/ops-inl.h"
#include "kernels/cpu/tile-inl.h"
#include "kernels/gemm.h"

HWY_BEFORE_NAMESPACE();
namespace backstory {
namespace HWY_NAMESPACE {

// Rows that share one pass over the panels: A stays in L1 while B streams from L2.
constexpr size_t kGemmRows = 24;
constexpr size_t kGemmPanels = 8;
// Summed values that are turned into operands at once: as many as kGemmRows rows leave room for in L1.
constexpr size_t kGemmDepth = 512;

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

HWY_INLINE const float* PanelOf(const PackedMatrix& b, size_t p, float) { return b.panel(p); }
HWY_INLINE const Bf16* PanelOf(const PackedMatrix& b, size_t p, Bf16) { return b.bf16_panel(p); }

// One block of rows, given as operands of the summed values from k0 on, against all panels. kAdd: go on with the sums
// in C, which bias and relu are yet to be applied to.
template <class Ops, bool kAdd>
HWY_INLINE void GemmBlock(const GemmArgs& a, const typename Ops::Operand* x, size_t lda, size_t rows, size_t k0,
                          size_t depth, bool first, bool last, float* edge, float* y) {
  const size_t n = a.b->n(), stride = a.b->panel_size();
  const size_t whole = n / kPanel;  // panels without padding
  const size_t end = std::min(whole, a.end_panel);
  const auto panel = [&](size_t p) { return PanelOf(*a.b, p, typename Ops::Stored()) + k0 * kPanel; };
  for (size_t p = a.first_panel; p < end; p += kGemmPanels) {
    const size_t panels = std::min(kGemmPanels, end - p);
    // The first rows find B in L3 or farther: the next panels are fetched beside the products of these.
    Ahead next;
    if (first && p + panels < end) {
      next = {reinterpret_cast<const char*>(panel(p + panels)),
              std::min(kGemmPanels, end - p - panels) * stride * sizeof(typename Ops::Stored)};
    }
    Ops::template Panels<kAdd>(x, lda, rows, panel(p), stride, panels, depth, y + p * kPanel, a.ldc, next);
    if (last && (a.bias != nullptr || a.relu)) {
      FinishGemm(a, rows, p * kPanel, panels * kPanel, y + p * kPanel, a.ldc, y + p * kPanel);
    }
  }
  if (whole * kPanel < n && a.first_panel <= whole && whole < a.end_panel) {
    Ops::template Panels<kAdd>(x, lda, rows, panel(whole), stride, 1, depth, edge, kPanel);
    if (last) FinishGemm(a, rows, whole * kPanel, n - whole * kPanel, edge, kPanel, y + whole * kPanel);
  }
}

template <class Ops>
HWY_INLINE void GemmWith(const GemmArgs& a) {
  const size_t k = a.b->k();
  HWY_ALIGN float edge[kGemmRows * kPanel];
  for (size_t i = 0; i < a.m; i += kGemmRows) {
    const size_t rows = std::min(kGemmRows, a.m - i);
    const float* x = a.a + i * a.lda;
    float* y = a.c + i * a.ldc;
    if constexpr (!Ops::kRounds) {
      GemmBlock<Ops, false>(a, x, a.lda, rows, 0, k, i == 0, true, edge, y);
    } else {
      HWY_ALIGN typename Ops::Operand operands[kGemmRows * kGemmDepth];
      for (size_t k0 = 0; k0 == 0 || k0 < k; k0 += kGemmDepth) {
        const size_t count = std::min(kGemmDepth, k - k0);
        for (size_t r = 0; r < rows; ++r) Ops::Convert(x + r * a.lda + k0, count, operands + r * kGemmDepth);
        const bool last = k0 + count == k;
        if (k0 == 0) {
          GemmBlock<Ops, false>(a, operands, kGemmDepth, rows, k0, PairPadded(count), i == 0, last, edge, y);
        } else {
          GemmBlock<Ops, true>(a, operands, kGemmDepth, rows, k0, PairPadded(count), i == 0, last, edge, y);
        }
      }
    }
  }
}

template <class Bf16Ops>
void Gemm(const GemmArgs& a) {
  if (a.b->dtype() == Dtype::kF32) return GemmWith<F32Ops>(a);
  GemmWith<Bf16Ops>(a);
}

}  // namespace HWY_NAMESPACE
}  // namespace backstory
HWY_AFTER_NAMESPACE();

#endif  // BACKSTORY_KERNELS_CPU_GEMM_INL_H_
