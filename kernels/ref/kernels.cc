// The readable twin of every kernel: plain loops, double sums. Slow on purpose; trust it at sight.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/dispatch.h"

namespace backstory {
namespace {

void Gemm(const GemmArgs& a) {
  for (size_t i = 0; i < a.m; ++i) {
    const size_t end = a.end_panel < a.b->panel_count() ? a.end_panel * kPanel : a.b->n();
    for (size_t j = a.first_panel * kPanel; j < end; ++j) {
      double sum = a.bias == nullptr ? 0 : a.bias[j];
      for (size_t k = 0; k < a.b->k(); ++k) {
        const float x = a.a[i * a.lda + k];
        sum += static_cast<double>(a.b->dtype() == Dtype::kBf16 ? RoundToBf16(x) : x) * a.b->At(k, j);
      }
      a.c[i * a.ldc + j] = static_cast<float>(a.relu ? std::max(sum, 0.0) : sum);
    }
  }
}

// Element `dim` of query row i, head h. Beside bf16 keys it is what all targets round: scale log2(e) q.
double Query(const AttendArgs& a, size_t i, size_t h, size_t dim) {
  const float q = a.q[(i * a.heads + h) * a.shape.d_k + dim];
  if (a.shape.dtype == Dtype::kF32) return q;
  const float scale2 = a.scale * 1.44269504088896340736f;
  return static_cast<double>(RoundToBf16(q * scale2)) / scale2;
}

double Element(Dtype dtype, const void* page, size_t index) {
  if (dtype == Dtype::kF32) return static_cast<const float*>(page)[index];
  return FromBf16(static_cast<const Bf16*>(page)[index]);
}

// Query row i, head h: calls visit(row, logit) for every visible row in order.
template <typename Visit>
void ForVisibleRows(const AttendArgs& a, size_t i, size_t h, Visit visit) {
  const PageShape& s = a.shape;
  const size_t kv_head = h / (a.heads / s.kv_heads);
  const float* bias = a.bias.rows == nullptr ? nullptr : a.bias.rows + (i * a.heads + h) * a.bias.stride;
  for (const KeyRun& run : a.runs == nullptr ? a.shared_runs : a.runs[i]) {
    for (size_t row = run.begin; row < run.end; ++row) {
      const PageView& page = a.pages[row / kPageRows];
      double dot = 0;
      for (size_t x = 0; x < s.d_k; ++x) {
        dot += Query(a, i, h, x) * Element(s.dtype, page.k, s.KIndex(kv_head, row % kPageRows, x));
      }
      if (bias != nullptr && run.time != KeyRun::kNoBias) {
        const size_t rank = std::min<size_t>(run.rank - (row - run.begin), a.bias.n_pos - 1);
        dot += static_cast<double>(bias[a.bias.n_pos - 1 - rank]) + bias[a.bias.n_pos + run.time];
      }
      double logit = dot * a.scale;
      const float* log_w = a.log_w == nullptr ? nullptr : a.log_w[row / kPageRows];
      if (log_w != nullptr) logit += log_w[row % kPageRows];
      visit(row, logit);
    }
  }
}

void AttendRow(const AttendArgs& a, size_t i, size_t h) {
  const PageShape& s = a.shape;
  const size_t kv_head = h / (a.heads / s.kv_heads);
  std::vector<double> logits;
  std::vector<std::vector<double>> values;
  if (a.self_k != nullptr) {
    double dot = 0;
    for (size_t x = 0; x < s.d_k; ++x) dot += Query(a, i, h, x) * a.self_k[(i * s.kv_heads + kv_head) * s.d_k + x];
    if (a.bias.rows != nullptr) {
      const float* bias = a.bias.rows + (i * a.heads + h) * a.bias.stride;
      dot += static_cast<double>(bias[a.bias.n_pos - 1]) + bias[a.bias.n_pos];
    }
    logits.push_back(dot * a.scale);
    const float* v = a.self_v + (i * s.kv_heads + kv_head) * s.d_v;
    values.emplace_back(v, v + s.d_v);
  }
  ForVisibleRows(a, i, h, [&](size_t row, double logit) {
    logits.push_back(logit);
    std::vector<double>& v = values.emplace_back(s.d_v);
    for (size_t x = 0; x < s.d_v; ++x) {
      v[x] = Element(s.dtype, a.pages[row / kPageRows].v, s.VIndex(kv_head, row % kPageRows, x));
    }
  });
  const double top = logits.empty() ? 0 : *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  std::vector<double> o(s.d_v, 0);
  for (size_t j = 0; j < logits.size(); ++j) {
    const double p = std::exp(logits[j] - top);
    sum += p;
    for (size_t x = 0; x < s.d_v; ++x) o[x] += p * values[j][x];
  }
  for (size_t x = 0; x < s.d_v; ++x) {
    a.o[(i * a.heads + h) * s.d_v + x] = static_cast<float>(sum > 0 ? o[x] / sum : 0);
  }
  if (a.lse == nullptr) return;
  a.lse[i * a.heads + h] = static_cast<float>(sum > 0 ? top + std::log(sum) : -INFINITY);
}

void Attend(const AttendArgs& a) {
  for (size_t i = 0; i < a.queries; ++i) {
    for (size_t h = 0; h < a.heads; ++h) AttendRow(a, i, h);
  }
}

void AttendMass(const AttendMassArgs& m) {
  const AttendArgs& a = m.attend;
  const size_t width = a.pages.size() * kPageRows;
  for (size_t i = 0; i < a.queries; ++i) {
    for (size_t h = 0; h < a.heads; ++h) {
      const double lse = a.lse[i * a.heads + h];
      ForVisibleRows(a, i, h, [&](size_t row, double logit) {
        m.mass[i * width + row] += static_cast<float>(std::exp(logit - lse) / static_cast<double>(a.heads));
      });
    }
  }
}

void FoldBias(const FoldBiasArgs& a) {
  const PageShape& s = a.shape;
  std::memcpy(a.to, a.from, s.k_size() * s.element_bytes());
  const size_t begin = a.page * kPageRows;
  for (const KeyRun& run : a.runs) {
    if (run.time == KeyRun::kNoBias) continue;
    const size_t from = std::max<size_t>(run.begin, begin), to = std::min<size_t>(run.end, begin + kPageRows);
    for (size_t row = from; row < to; ++row) {
      const float* pos = a.codes->Pos(static_cast<ptrdiff_t>(run.rank - (row - run.begin)));
      for (size_t h = 0; h < s.kv_heads; ++h) {
        for (size_t i = 0; i < s.d_k; ++i) {
          const size_t at = s.KIndex(h, row - begin, i);
          const float bias = pos[i * a.codes->stride()] + a.codes->Time(run.time)[i];
          if (s.dtype == Dtype::kF32) {
            static_cast<float*>(a.to)[at] = static_cast<const float*>(a.from)[at] + bias;
          } else {
            static_cast<Bf16*>(a.to)[at] = ToBf16(FromBf16(static_cast<const Bf16*>(a.from)[at]) + bias);
          }
        }
      }
    }
  }
}

void Merge(const MergeArgs& m) {
  for (size_t i = 0; i < m.rows; ++i) {
    double top = -INFINITY;
    for (const float* lse : m.lse) top = std::max(top, static_cast<double>(lse[i]));
    double sum = 0;
    std::vector<double> o(m.d_v, 0);
    for (size_t part = 0; part < m.lse.size(); ++part) {
      if (m.lse[part][i] == -INFINITY) continue;
      const double w = std::exp(m.lse[part][i] - top);
      sum += w;
      for (size_t x = 0; x < m.d_v; ++x) o[x] += w * m.o[part][i * m.d_v + x];
    }
    for (size_t x = 0; x < m.d_v; ++x) m.out_o[i * m.d_v + x] = static_cast<float>(sum > 0 ? o[x] / sum : 0);
    m.out_lse[i] = static_cast<float>(sum > 0 ? top + std::log(sum) : -INFINITY);
  }
}

Moments RowMoments(const float* x, size_t n) {
  double sum = 0, m2 = 0;
  for (size_t i = 0; i < n; ++i) sum += x[i];
  const double mean = n == 0 ? 0 : sum / static_cast<double>(n);
  for (size_t i = 0; i < n; ++i) m2 += (x[i] - mean) * (x[i] - mean);
  return {static_cast<float>(mean), static_cast<float>(m2)};
}

void LayerNorm(const LayerNormArgs& a) {
  for (size_t r = 0; r < a.rows; ++r) {
    std::vector<float> x(a.x + r * a.n, a.x + (r + 1) * a.n);
    for (size_t i = 0; i < a.n && a.add != nullptr; ++i) x[i] += a.add[r * a.n + i];
    double mean = 0, var = 0;
    for (size_t i = 0; i < a.n; ++i) mean += x[i] / static_cast<double>(a.n);
    for (size_t i = 0; i < a.n; ++i) var += (x[i] - mean) * (x[i] - mean) / static_cast<double>(a.n);
    for (size_t i = 0; i < a.n; ++i) {
      const double unit = (x[i] - mean) / std::sqrt(var + a.eps);
      a.y[r * a.n + i] = static_cast<float>(unit * (a.g == nullptr ? 1 : a.g[i]) + (a.b == nullptr ? 0 : a.b[i]));
    }
  }
}

void Add(const float* y, size_t n, float* x) {
  for (size_t i = 0; i < n; ++i) x[i] += y[i];
}

double SigmoidOf(double x) { return 1 / (1 + std::exp(-x)); }

void Sigmoid(size_t n, float* x) {
  for (size_t i = 0; i < n; ++i) x[i] = static_cast<float>(SigmoidOf(x[i]));
}

void SigmoidGate(const float* gate, size_t n, float* x) {
  for (size_t i = 0; i < n; ++i) x[i] = static_cast<float>(x[i] * SigmoidOf(gate[i]));
}

void Mix(const MixArgs& a) {
  const size_t channels = a.x.size();
  for (size_t r = 0; r < a.rows; ++r) {
    for (size_t i = r * a.d; i < (r + 1) * a.d; ++i) {
      double old[MixArgs::kMaxChannels];
      for (size_t c = 0; c < channels; ++c) old[c] = a.x[c][i];
      for (size_t c = 0; c < channels; ++c) {
        double sum = old[c];
        for (size_t from = 0; from < channels; ++from) {
          if (from != c) sum += a.beta[r * channels + from] * old[from];
        }
        a.x[c][i] = static_cast<float>(sum);
      }
    }
  }
}

void EmbeddingBag(const EmbeddingBagArgs& a) {
  for (size_t r = 0; r < a.rows; ++r) {
    for (size_t i = 0; i < a.width; ++i) {
      double sum = 0;
      for (uint32_t at = a.offsets[r]; at < a.offsets[r + 1]; ++at) sum += a.table[a.ids[at] * a.width + i];
      a.out[r * a.out_stride + i] = static_cast<float>(sum);
    }
  }
}

}  // namespace

const KernelTable& RefKernels() {
  static constexpr KernelTable kTable{.target = "ref",
                                      .gemm = Gemm,
                                      .attend = Attend,
                                      .attend_mass = AttendMass,
                                      .fold_bias = FoldBias,
                                      .merge = Merge,
                                      .layer_norm = LayerNorm,
                                      .moments = RowMoments,
                                      .add = Add,
                                      .sigmoid = Sigmoid,
                                      .sigmoid_gate = SigmoidGate,
                                      .mix = Mix,
                                      .embedding_bag = EmbeddingBag};
  return kTable;
}

}  // namespace backstory
