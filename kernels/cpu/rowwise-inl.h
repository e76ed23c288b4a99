// The row-wise kernels for one target. Included once per target.
#if defined(BACKSTORY_KERNELS_CPU_ROWWISE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BACKSTORY_KERNELS_CPU_ROWWISE_INL_H_
#undef BACKSTORY_KERNELS_CPU_ROWWISE_INL_H_
#else
#define BACKSTORY_KERNELS_CPU_ROWWISE_INL_H_
#endif

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/cpu/tile-inl.h"
#include "kernels/rowwise.h"

HWY_BEFORE_NAMESPACE();
namespace backstory {
namespace HWY_NAMESPACE {

HWY_INLINE float RowSum(const float* x, size_t n) {
  const Tag d;
  Vec sum = hn::Zero(d);
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) sum = hn::Add(sum, hn::LoadU(d, x + i));
  float total = hn::GetLane(hn::SumOfLanes(d, sum));
  for (; i < n; ++i) total += x[i];
  return total;
}

Moments RowMoments(const float* x, size_t n) {
  if (n == 0) return {};
  const Tag d;
  const float mean = RowSum(x, n) / static_cast<float>(n);
  const Vec m = hn::Set(d, mean);
  Vec sum = hn::Zero(d);
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Vec diff = hn::Sub(hn::LoadU(d, x + i), m);
    sum = hn::MulAdd(diff, diff, sum);
  }
  float total = hn::GetLane(hn::SumOfLanes(d, sum));
  for (; i < n; ++i) total += (x[i] - mean) * (x[i] - mean);
  return {mean, total};
}

void LayerNorm(const LayerNormArgs& a) {
  const Tag d;
  for (size_t r = 0; r < a.rows; ++r) {
    const float* x = a.x + r * a.n;
    float* y = a.y + r * a.n;
    if (a.add != nullptr) {
      const float* add = a.add + r * a.n;
      size_t i = 0;
      for (; i + kLanes <= a.n; i += kLanes) hn::StoreU(hn::Add(hn::LoadU(d, x + i), hn::LoadU(d, add + i)), d, y + i);
      for (; i < a.n; ++i) y[i] = x[i] + add[i];
      x = y;
    }
    const Moments moments = RowMoments(x, a.n);
    const float rstd = 1.0f / std::sqrt(moments.m2 / static_cast<float>(a.n) + a.eps);
    const Vec m = hn::Set(d, moments.mean), s = hn::Set(d, rstd);
    size_t i = 0;
    for (; i + kLanes <= a.n; i += kLanes) {
      Vec v = hn::Mul(hn::Sub(hn::LoadU(d, x + i), m), s);
      if (a.g != nullptr) v = hn::Mul(v, hn::LoadU(d, a.g + i));
      if (a.b != nullptr) v = hn::Add(v, hn::LoadU(d, a.b + i));
      hn::StoreU(v, d, y + i);
    }
    for (; i < a.n; ++i) {
      float v = (x[i] - moments.mean) * rstd;
      if (a.g != nullptr) v *= a.g[i];
      if (a.b != nullptr) v += a.b[i];
      y[i] = v;
    }
  }
}

void Add(const float* y, size_t n, float* x) {
  const Tag d;
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) hn::StoreU(hn::Add(hn::LoadU(d, x + i), hn::LoadU(d, y + i)), d, x + i);
  for (; i < n; ++i) x[i] += y[i];
}

// 1 / (1 + e^-x) for x >= 0, e^x / (1 + e^x) below: never overflows.
HWY_INLINE Vec SigmoidOf(Vec x) {
  const Tag d;
  const Vec e = Exp2(hn::Mul(hn::Neg(hn::Abs(x)), hn::Set(d, 1.44269504088896340736f)));
  const Vec top = hn::IfThenElse(hn::Ge(x, hn::Zero(d)), hn::Set(d, 1.0f), e);
  return hn::Div(top, hn::Add(hn::Set(d, 1.0f), e));
}

// The last, partial vector goes through a padded copy, so that an element's bits do not depend on where it stands.
void Sigmoid(size_t n, float* x) {
  const Tag d;
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) hn::StoreU(SigmoidOf(hn::LoadU(d, x + i)), d, x + i);
  if (i == n) return;
  HWY_ALIGN float tail[kPanel] = {};
  std::memcpy(tail, x + i, (n - i) * sizeof(float));
  hn::Store(SigmoidOf(hn::Load(d, tail)), d, tail);
  std::memcpy(x + i, tail, (n - i) * sizeof(float));
}

void SigmoidGate(const float* gate, size_t n, float* x) {
  const Tag d;
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    hn::StoreU(hn::Mul(hn::LoadU(d, x + i), SigmoidOf(hn::LoadU(d, gate + i))), d, x + i);
  }
  if (i == n) return;
  HWY_ALIGN float tail[kPanel] = {};
  std::memcpy(tail, gate + i, (n - i) * sizeof(float));
  hn::Store(SigmoidOf(hn::Load(d, tail)), d, tail);
  for (size_t j = i; j < n; ++j) x[j] *= tail[j - i];
}

void Mix(const MixArgs& a) {
  const Tag d;
  const size_t channels = a.x.size();
  assert(channels <= MixArgs::kMaxChannels);
  for (size_t r = 0; r < a.rows; ++r) {
    const float* beta = a.beta + r * channels;
    size_t i = r * a.d;
    const size_t end = i + a.d;
    for (; i + kLanes <= end; i += kLanes) {
      Vec old[MixArgs::kMaxChannels];
      for (size_t c = 0; c < channels; ++c) old[c] = hn::LoadU(d, a.x[c] + i);
      for (size_t c = 0; c < channels; ++c) {
        Vec sum = old[c];
        for (size_t from = 0; from < channels; ++from) {
          if (from != c) sum = hn::Add(sum, hn::Mul(hn::Set(d, beta[from]), old[from]));
        }
        hn::StoreU(sum, d, a.x[c] + i);
      }
    }
    for (; i < end; ++i) {
      float old[MixArgs::kMaxChannels];
      for (size_t c = 0; c < channels; ++c) old[c] = a.x[c][i];
      for (size_t c = 0; c < channels; ++c) {
        float sum = old[c];
        for (size_t from = 0; from < channels; ++from) {
          if (from != c) sum += beta[from] * old[from];
        }
        a.x[c][i] = sum;
      }
    }
  }
}

void EmbeddingBag(const EmbeddingBagArgs& a) {
  for (size_t r = 0; r < a.rows; ++r) {
    float* out = a.out + r * a.out_stride;
    std::memset(out, 0, a.width * sizeof(float));
    for (uint32_t at = a.offsets[r]; at < a.offsets[r + 1]; ++at) {
      Add(a.table + static_cast<size_t>(a.ids[at]) * a.width, a.width, out);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace backstory
HWY_AFTER_NAMESPACE();

#endif  // BACKSTORY_KERNELS_CPU_ROWWISE_INL_H_
