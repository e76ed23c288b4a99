// The micro-kernel every product here runs on. Included once per target.
#if defined(BACKSTORY_KERNELS_CPU_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BACKSTORY_KERNELS_CPU_TILE_INL_H_
#undef BACKSTORY_KERNELS_CPU_TILE_INL_H_
#else
#define BACKSTORY_KERNELS_CPU_TILE_INL_H_
#endif

#include "hwy/highway.h"
#include "kernels/page.h"

HWY_BEFORE_NAMESPACE();
namespace backstory {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Tag = hn::CappedTag<float, kPanel>;
using Vec = hn::Vec<Tag>;
constexpr size_t kLanes = hn::MaxLanes(Tag());
constexpr size_t kVecs = kPanel / kLanes;  // vectors per panel
// Rows of a full tile: as many accumulators as the registers hold beside one panel row and one broadcast.
constexpr size_t kTileRows = kVecs == 4 ? 2 : kVecs == 2 ? 6 : 12;

// Memory that a product brings into L2 while it runs, for the next one.
struct Ahead {
  const char* from = nullptr;
  size_t bytes = 0;

  HWY_INLINE void Prefetch() const {
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
  }
};

// C[r][16 p + j] = init + sum over i < k ascending of a[r][i] panel_p[i][j], for kRows rows and kPanels panels
// `panel_stride` floats apart, columns of panel p written at c + 16 p. kAccumulate: init is C, else zero. Every element
// is one multiply-add chain whatever kRows and kPanels, so tilings are free to differ.
template <size_t kRows, size_t kPanels, bool kAccumulate>
HWY_INLINE void Tile(const float* HWY_RESTRICT a, size_t lda, const float* HWY_RESTRICT panel, size_t panel_stride,
                     size_t k, float* HWY_RESTRICT c, size_t ldc) {
  const Tag d;
  Vec acc[kRows][kPanels * kVecs];
#pragma GCC unroll 16
  for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (size_t v = 0; v < kPanels * kVecs; ++v) {
      acc[r][v] = kAccumulate ? hn::LoadU(d, c + r * ldc + v * kLanes) : hn::Zero(d);
    }
  }
  for (size_t i = 0; i < k; ++i) {
    Vec b[kPanels * kVecs];
#pragma GCC unroll 16
    for (size_t v = 0; v < kPanels * kVecs; ++v) {
      b[v] = hn::Load(d, panel + v / kVecs * panel_stride + i * kPanel + v % kVecs * kLanes);
    }
#pragma GCC unroll 16
    for (size_t r = 0; r < kRows; ++r) {
      const Vec x = hn::Set(d, a[r * lda + i]);
#pragma GCC unroll 16
      for (size_t v = 0; v < kPanels * kVecs; ++v) acc[r][v] = hn::MulAdd(x, b[v], acc[r][v]);
    }
  }
#pragma GCC unroll 16
  for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (size_t v = 0; v < kPanels * kVecs; ++v) hn::StoreU(acc[r][v], d, c + r * ldc + v * kLanes);
  }
}

// The same over a panel of bf16 pairs: a holds values already rounded to bf16, k is even, panel_stride in bf16
// elements.
template <size_t kRows, size_t kPanels, bool kAccumulate>
HWY_INLINE void Tile(const float* HWY_RESTRICT a, size_t lda, const Bf16* HWY_RESTRICT panel, size_t panel_stride,
                     size_t k, float* HWY_RESTRICT c, size_t ldc) {
  const Tag d;
  const hn::RebindToUnsigned<Tag> du;
  Vec acc[kRows][kPanels * kVecs];
#pragma GCC unroll 16
  for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (size_t v = 0; v < kPanels * kVecs; ++v) {
      acc[r][v] = kAccumulate ? hn::LoadU(d, c + r * ldc + v * kLanes) : hn::Zero(d);
    }
  }
  for (size_t i = 0; i < k; i += 2) {
#pragma GCC unroll 2
    for (size_t half = 0; half < 2; ++half) {
      Vec b[kPanels * kVecs];
#pragma GCC unroll 16
      for (size_t v = 0; v < kPanels * kVecs; ++v) {
        const Bf16* pairs = panel + v / kVecs * panel_stride + i * kPanel + v % kVecs * 2 * kLanes;
        const auto both = hn::Load(du, reinterpret_cast<const uint32_t*>(pairs));
        b[v] = hn::BitCast(d, half == 0 ? hn::ShiftLeft<16>(both) : hn::And(both, hn::Set(du, 0xffff0000u)));
      }
#pragma GCC unroll 16
      for (size_t r = 0; r < kRows; ++r) {
        const Vec x = hn::Set(d, a[r * lda + i + half]);
#pragma GCC unroll 16
        for (size_t v = 0; v < kPanels * kVecs; ++v) acc[r][v] = hn::MulAdd(x, b[v], acc[r][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (size_t v = 0; v < kPanels * kVecs; ++v) hn::StoreU(acc[r][v], d, c + r * ldc + v * kLanes);
  }
}

// One panel, any number of rows. Not inlined: its callers are many, and it holds every tile shape.
template <bool kAccumulate, class Stored>
HWY_NOINLINE void TileRows(const float* a, size_t lda, size_t rows, const Stored* panel, size_t k, float* c,
                           size_t ldc) {
  size_t r = 0;
  for (; r + kTileRows <= rows; r += kTileRows) {
    Tile<kTileRows, 1, kAccumulate>(a + r * lda, lda, panel, 0, k, c + r * ldc, ldc);
  }
  if constexpr (kTileRows > 6) {
    for (; r + 6 <= rows; r += 6) Tile<6, 1, kAccumulate>(a + r * lda, lda, panel, 0, k, c + r * ldc, ldc);
  }
  if constexpr (kTileRows > 3) {
    for (; r + 3 <= rows; r += 3) Tile<3, 1, kAccumulate>(a + r * lda, lda, panel, 0, k, c + r * ldc, ldc);
  }
  for (; r < rows; ++r) Tile<1, 1, kAccumulate>(a + r * lda, lda, panel, 0, k, c + r * ldc, ldc);
}

// `panels` neighbouring panels, panel_stride elements apart. A single row takes four panels at once: one panel has too
// few chains to hide the latency of a multiply-add.
template <bool kAccumulate, class Stored>
HWY_NOINLINE void TilePanels(const float* a, size_t lda, size_t rows, const Stored* panel, size_t panel_stride,
                             size_t panels, size_t k, float* c, size_t ldc) {
  size_t p = 0;
  if (rows == 1) {
    for (; p + 4 <= panels; p += 4) {
      Tile<1, 4, kAccumulate>(a, lda, panel + p * panel_stride, panel_stride, k, c + p * kPanel, ldc);
    }
  } else if (rows <= 3 && kVecs <= 2) {
    for (; p + 2 <= panels; p += 2) {
      const Stored* at = panel + p * panel_stride;
      if (rows == 3) Tile<3, 2, kAccumulate>(a, lda, at, panel_stride, k, c + p * kPanel, ldc);
      if (rows == 2) Tile<2, 2, kAccumulate>(a, lda, at, panel_stride, k, c + p * kPanel, ldc);
    }
  }
  for (; p < panels; ++p) {
    TileRows<kAccumulate>(a, lda, rows, panel + p * panel_stride, k, c + p * kPanel, ldc);
  }
}

// 2^x for x <= 0: relative error <= 2e-7 down to -126 (polynomial 9.2e-8, rounding 1.7e-7 measured over [-0.5, 0.5]),
// exactly 1 at 0, exactly 0 from -127 on and for -inf, in between something in [0, 2^-126].
// Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits, ready to be shifted into the exponent.
// At -127 the mantissa is exactly 1, so subtracting 127 from its exponent leaves all bits zero.
HWY_INLINE Vec Exp2(Vec x) {
  const Tag d;
  const hn::RebindToSigned<Tag> di;
  const Vec magic = hn::Set(d, 12582912.0f);
  const Vec clamped = hn::Max(x, hn::Set(d, -127.0f));
  const Vec shifted = hn::Add(clamped, magic);
  const Vec f = hn::Sub(clamped, hn::Sub(shifted, magic));
  Vec p = hn::Set(d, 0x1.5bba14p-10f);
  p = hn::MulAdd(p, f, hn::Set(d, 0x1.3cea88p-7f));
  p = hn::MulAdd(p, f, hn::Set(d, 0x1.c6b752p-5f));
  p = hn::MulAdd(p, f, hn::Set(d, 0x1.ebf9bcp-3f));
  p = hn::MulAdd(p, f, hn::Set(d, 0x1.62e42ap-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
  return hn::BitCast(d, hn::Add(hn::BitCast(di, p), hn::ShiftLeft<23>(hn::BitCast(di, shifted))));
}

}  // namespace HWY_NAMESPACE
}  // namespace backstory
HWY_AFTER_NAMESPACE();

#endif  // BACKSTORY_KERNELS_CPU_TILE_INL_H_
