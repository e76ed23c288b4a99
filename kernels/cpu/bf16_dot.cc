// Compiled with AVX-512 flags: includes nothing with inline functions, which the linker might then pick for everybody.
#include "kernels/cpu/bf16_dot.h"

#include <immintrin.h>

namespace backstory {
namespace {

template <size_t kRows, size_t kPanels, bool kMaxima>
inline __attribute__((always_inline)) void Tile(const Bf16DotArgs& args, const uint16_t* a, const uint16_t* panel,
                                                float* c, float* maxima, bool first) {
  __m512 acc[kRows][kPanels];
#pragma GCC unroll 8
  for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (size_t p = 0; p < kPanels; ++p) {
      acc[r][p] = args.add ? _mm512_loadu_ps(c + r * args.ldc + 16 * p) : _mm512_setzero_ps();
    }
  }
  for (size_t i = 0; i < args.pairs; ++i) {
    __m512bh b[kPanels];
#pragma GCC unroll 8
    for (size_t p = 0; p < kPanels; ++p) b[p] = (__m512bh)_mm512_load_si512(panel + p * args.panel_stride + 32 * i);
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; ++r) {
      int pair;
      __builtin_memcpy(&pair, a + r * args.lda + 2 * i, sizeof(pair));
      const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 8
      for (size_t p = 0; p < kPanels; ++p) acc[r][p] = _mm512_dpbf16_ps(acc[r][p], x, b[p]);
    }
  }
#pragma GCC unroll 8
  for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (size_t p = 0; p < kPanels; ++p) _mm512_storeu_ps(c + r * args.ldc + 16 * p, acc[r][p]);
  }
  if constexpr (!kMaxima) return;
#pragma GCC unroll 8
  for (size_t r = 0; r < kRows; ++r) {
    __m512 top = acc[r][0];
#pragma GCC unroll 8
    for (size_t p = 1; p < kPanels; ++p) top = _mm512_max_ps(top, acc[r][p]);
    if (!first) top = _mm512_max_ps(top, _mm512_load_ps(maxima + 16 * r));
    _mm512_store_ps(maxima + 16 * r, top);
  }
}

// What one tile is to prefetch of args.ahead: bursts would wait for each other.
struct Ahead {
  const char* next;
  const char* end;
  size_t bytes_per_tile;

  void Step() {
    const char* stop = static_cast<size_t>(end - next) < bytes_per_tile ? end : next + bytes_per_tile;
    for (; next < stop; next += 64) __builtin_prefetch(next, 0, 2);
  }
};

constexpr size_t kTileRows = 6;

// All rows against kPanels panels. Six rows by four panels: 24 chains hide the instruction's latency, and ten loads
// feed 24 of it.
template <size_t kPanels, bool kMaxima>
void Rows(const Bf16DotArgs& args, size_t first_panel, Ahead* ahead) {
  const uint16_t* panel = args.panel + first_panel * args.panel_stride;
  float* c = args.c + 16 * first_panel;
  float* maxima = args.maxima;
  const bool first = first_panel == 0;
  const auto skip = [&](size_t rows) { return kMaxima ? maxima + 16 * rows : nullptr; };
  size_t r = 0;
  for (; r + kTileRows <= args.rows; r += kTileRows) {
    ahead->Step();
    Tile<kTileRows, kPanels, kMaxima>(args, args.a + r * args.lda, panel, c + r * args.ldc, skip(r), first);
  }
  const uint16_t* a = args.a + r * args.lda;
  c += r * args.ldc;
  maxima = skip(r);
  ahead->Step();
  switch (args.rows - r) {
    case 5:
      return Tile<5, kPanels, kMaxima>(args, a, panel, c, maxima, first);
    case 4:
      return Tile<4, kPanels, kMaxima>(args, a, panel, c, maxima, first);
    case 3:
      return Tile<3, kPanels, kMaxima>(args, a, panel, c, maxima, first);
    case 2:
      return Tile<2, kPanels, kMaxima>(args, a, panel, c, maxima, first);
    case 1:
      return Tile<1, kPanels, kMaxima>(args, a, panel, c, maxima, first);
    default:
      return;
  }
}

template <bool kMaxima>
void Panels(const Bf16DotArgs& args) {
  const size_t tiles = ((args.rows + kTileRows - 1) / kTileRows) * ((args.panels + 3) / 4);
  Ahead ahead{args.ahead, args.ahead + args.ahead_bytes, tiles == 0 ? 0 : (args.ahead_bytes / 64 / tiles + 1) * 64};
  size_t p = 0;
  if (args.rows == 1) {
    for (; p + 8 <= args.panels; p += 8) {
      Tile<1, 8, kMaxima>(args, args.a, args.panel + p * args.panel_stride, args.c + 16 * p, args.maxima, p == 0);
    }
  }
  for (; p + 4 <= args.panels; p += 4) Rows<4, kMaxima>(args, p, &ahead);
  if (p + 2 <= args.panels) {
    Rows<2, kMaxima>(args, p, &ahead);
    p += 2;
  }
  if (p < args.panels) Rows<1, kMaxima>(args, p, &ahead);
}

// 2^x = 2^floor(x) 2^f for x <= 0, f in [0, 1): the polynomial is off by 7.5e-8, with rounding 1.5e-7.
inline __attribute__((always_inline)) __m512 Exp2(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF);
  __m512 p = _mm512_set1_ps(0x1.ec320ap-10f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.26900cp-7f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.c95446p-5f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.ebd5a8p-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.62e4f6p-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.fffffep-1f));
  return _mm512_scalef_ps(p, x);
}

}  // namespace

void Bf16DotPanels(const Bf16DotArgs& args) { args.maxima == nullptr ? Panels<false>(args) : Panels<true>(args); }

void Bf16Weights(const WeightsArgs& args) {
  for (size_t r = 0; r < args.rows; ++r) {
    float* const s = args.s + r * args.s_stride;
    uint16_t* const p = reinterpret_cast<uint16_t*>(s);
    const __m512 top = _mm512_set1_ps(args.top[r]);
    __m512 even = _mm512_load_ps(args.sums + 16 * r), odd = _mm512_setzero_ps();  // panels of the page by their place
    const auto one = [&](size_t j, __m512* sum) {
      const __m512 weight = Exp2(_mm512_sub_ps(_mm512_load_ps(s + j), top));
      *sum = _mm512_add_ps(*sum, weight);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + j), (__m256i)_mm512_cvtneps_pbh(weight));
    };
    size_t j = args.first;
    if (j % 32 != 0 && j < args.last) {
      one(j, &odd);
      j += 16;
    }
    for (; j + 32 <= args.last; j += 32) {
      const __m512 low = Exp2(_mm512_sub_ps(_mm512_load_ps(s + j), top));
      const __m512 high = Exp2(_mm512_sub_ps(_mm512_load_ps(s + j + 16), top));
      even = _mm512_add_ps(even, low);
      odd = _mm512_add_ps(odd, high);
      _mm512_storeu_si512(p + j, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
    if (j < args.last) one(j, &even);
    _mm512_store_ps(args.sums + 16 * r, _mm512_add_ps(even, odd));
  }
}

void Bf16Add(const Bf16AddArgs& args) {
  alignas(64) static const uint16_t kPairs[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                  8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i order = _mm512_load_si512(kPairs), upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  for (size_t i = 0; i < args.pairs; ++i) {
    const __m512i both = _mm512_load_si512(args.from + 32 * i);
    const __m512 low =
        _mm512_add_ps(_mm512_castsi512_ps(_mm512_slli_epi32(both, 16)), _mm512_load_ps(args.add + 32 * i));
    const __m512 high =
        _mm512_add_ps(_mm512_castsi512_ps(_mm512_and_si512(both, upper)), _mm512_load_ps(args.add + 32 * i + 16));
    _mm512_store_si512(args.to + 32 * i, _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(high, low)));
  }
}

void Bf16Convert(const float* from, size_t n, uint16_t* to) {
  size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + i)));
  }
  if (i == n) return;
  const size_t left = n - i;
  const __mmask16 in = static_cast<__mmask16>((1u << left) - 1);
  const __mmask16 out = static_cast<__mmask16>((1u << (left + left % 2)) - 1);
  const __m512 x = _mm512_maskz_loadu_ps(in, from + i);
  _mm256_mask_storeu_epi16(to + i, out, (__m256i)_mm512_cvtneps_pbh(x));
}

}  // namespace backstory
