// The kernels around attention against double precision. Skipped without a GPU.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <tuple>
#include <vector>

#include "kernels/cuda/layer.h"
#include "tests/kernels/cuda/on_card.h"
#include "tests/kernels/random.h"

namespace backstory::cuda {
namespace {

// An array here and on the card.
template <typename T>
class Both : public OnCard<T> {
 public:
  explicit Both(std::vector<T> host) : OnCard<T>(host), host_(std::move(host)) {}
  T* device() const { return this->data(); }
  const T& operator[](size_t i) const { return host_[i]; }

 private:
  std::vector<T> host_;
};

std::vector<uint16_t> Matrix(size_t size, double scale, Random* random) {
  std::vector<uint16_t> m(size);
  for (uint16_t& x : m) x = ToBf16(random->Normal(static_cast<float>(scale)));
  return m;
}
std::vector<float> Vector(size_t size, double mean, double scale, Random* random) {
  std::vector<float> v(size);
  for (float& x : v) x = static_cast<float>(mean + random->Normal(static_cast<float>(scale)));
  return v;
}
constexpr float kPoison = -77777;

class CudaLayer : public testing::Test {
 protected:
  void SetUp() override {
    int devices = 0, major = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) GTEST_SKIP() << "no GPU";
    Ok(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    if (major != 9) GTEST_SKIP() << "no GPU of compute capability 9.0";
  }
};

// out[o] = row . w[o], and the sum of the products' magnitudes.
void Product(const uint16_t* row, const uint16_t* w, size_t in, size_t out, std::vector<double>* sum,
             std::vector<double>* magnitude) {
  sum->assign(out, 0), magnitude->assign(out, 0);
  for (size_t o = 0; o < out; ++o) {
    for (size_t i = 0; i < in; ++i) {
      const double term = FromBf16(row[i]) * FromBf16(w[o * in + i]);
      (*sum)[o] += term, (*magnitude)[o] += std::abs(term);
    }
  }
}

void CheckProject(int rows, int channels, int out, int bias_out, bool with_b, int in = 512) {
  Random random(static_cast<uint64_t>(rows * 10 + channels));
  const size_t c = static_cast<size_t>(channels), m = static_cast<size_t>(rows);
  const Both z(Matrix(c * m * in, 1, &random)), w(Matrix(c * out * in, 0.04, &random)),
      w_bias(Matrix(c * bias_out * in, 0.04, &random)), b(Matrix(c * out, 1, &random));
  const Both<uint16_t> y(std::vector<uint16_t>(c * m * out, ToBf16(kPoison)));
  const Both<float> bias(std::vector<float>(c * bias_out * m, kPoison));
  const char* wrong = Project({.rows = rows,
                               .channels = channels,
                               .in = in,
                               .out = out,
                               .bias_out = bias_out,
                               .z = z.device(),
                               .w = w.device(),
                               .b = with_b ? b.device() : nullptr,
                               .w_bias = w_bias.device(),
                               .y = y.device(),
                               .bias = bias.device()},
                              nullptr);
  ASSERT_EQ(wrong, nullptr) << wrong;
  Ok(cudaDeviceSynchronize());
  const auto got_y = y.Read();
  const auto got_bias = bias.Read();
  double worst = 0;
  std::vector<double> sum, magnitude;
  for (size_t at = 0; at < c * m; at += 1 + random.Below(m < 400 ? 3 : 31)) {
    const size_t channel = at / m, row = at % m;
    Product(&z[at * in], &w[channel * out * in], in, out, &sum, &magnitude);
    for (size_t o = 0; o < sum.size(); ++o) {
      const double want = sum[o] + (with_b ? FromBf16(b[channel * out + o]) : 0);
      const double bound = in * 0x1p-23 * magnitude[o] + 0x1p-8 * std::abs(want) + 1e-6;
      worst = std::max(worst, std::abs(FromBf16(got_y[at * out + o]) - want) / bound);
    }
    if (bias_out == 0) continue;
    Product(&z[at * in], &w_bias[channel * bias_out * in], in, bias_out, &sum, &magnitude);
    for (size_t o = 0; o < sum.size(); ++o) {
      const double got = got_bias[(channel * bias_out + o) * m + row];
      worst = std::max(worst, std::abs(got - sum[o]) / (in * 0x1p-23 * magnitude[o] + 1e-6));
    }
  }
  EXPECT_LT(worst, 1);
  printf("  project %d rows, %d channels, %d + %d: worst error %.3f of the bound\n", rows, channels, out, bias_out,
         worst);
}

TEST_F(CudaLayer, Project) {
  CheckProject(64, 1, 128, 64, true);
  CheckProject(4, 2, 1536, 256, true);
  CheckProject(256, 2, 1536, 256, false);
  CheckProject(300, 1, 1536, 0, true);
  CheckProject(68, 2, 1536, 320, true);
  CheckProject(1000, 2, 1536, 200, true);
  CheckProject(200, 3, 384, 8, true, 128);
  CheckProject(2100, 2, 768, 256, false, 256);
}

TEST_F(CudaLayer, ProjectRefusesWhatItCannotDo) {
  EXPECT_FALSE(ProjectFits(500, 1536, 256));
  EXPECT_FALSE(ProjectFits(512, 1500, 256));
  EXPECT_NE(Project({.rows = 5, .channels = 1, .in = 512, .out = 128}, nullptr), nullptr);
}

struct Widths {
  size_t d = 512, wide = 512, ffn = 1024;
};

struct LayerCase {
  size_t c, m, d, wide, ffn;
  Random random;
  Both<uint16_t> attended, w_o, w_1, w_2, b_1, z, inner;
  Both<float> b_2, n1_g, n1_b, n2_g, n2_b, gate_w, gate_b, x;
  LayerCase(int rows, int channels, uint64_t seed, const Widths& w = {})
      : c(static_cast<size_t>(channels)),
        m(static_cast<size_t>(rows)),
        d(w.d),
        wide(w.wide),
        ffn(w.ffn),
        random(seed),
        attended(Matrix(c * m * wide, 1, &random)),
        w_o(Matrix(c * d * wide, 0.04, &random)),
        w_1(Matrix(c * ffn * d, 0.04, &random)),
        w_2(Matrix(c * d * ffn, 0.04, &random)),
        b_1(Matrix(c * ffn, 0.3, &random)),
        z(std::vector<uint16_t>(c * m * d, ToBf16(kPoison))),
        inner(std::vector<uint16_t>(c * m * ffn, ToBf16(kPoison))),
        b_2(Vector(c * d, 0, 0.3, &random)),
        n1_g(Vector(c * d, 1, 0.2, &random)),
        n1_b(Vector(c * d, 0, 0.2, &random)),
        n2_g(Vector(c * d, 1, 0.2, &random)),
        n2_b(Vector(c * d, 0, 0.2, &random)),
        gate_w(Vector(c * c * d, 0, 0.05, &random)),
        gate_b(Vector(c, 0, 0.5, &random)),
        x(Vector(c * m * d, 0.5, 1, &random)) {}
  FinishArgs Args() const {
    return {.rows = static_cast<int>(m),
            .channels = static_cast<int>(c),
            .d = static_cast<int>(d),
            .wide = static_cast<int>(wide),
            .ffn = static_cast<int>(ffn),
            .attended = attended.device(),
            .w_o = w_o.device(),
            .w_1 = w_1.device(),
            .w_2 = w_2.device(),
            .b_1 = b_1.device(),
            .b_2 = b_2.device(),
            .n1_g = n1_g.device(),
            .n1_b = n1_b.device(),
            .n2_g = n2_g.device(),
            .n2_b = n2_b.device(),
            .gate_w = gate_w.device(),
            .gate_b = gate_b.device(),
            .x = x.device(),
            .z = z.device(),
            .inner = inner.device()};
  }

  static void Norm(const float* g, const float* b, std::vector<double>* v) {
    const size_t d = v->size();
    double mean = 0, squares = 0;
    for (double e : *v) mean += e / d;
    for (double e : *v) squares += (e - mean) * (e - mean) / d;
    for (size_t i = 0; i < d; ++i) (*v)[i] = ((*v)[i] - mean) / std::sqrt(squares + 1e-5) * g[i] + b[i];
  }
  static std::vector<uint16_t> Rounded(const std::vector<double>& v) {
    std::vector<uint16_t> r(v.size());
    for (size_t i = 0; i < v.size(); ++i) r[i] = ToBf16(v[i]);
    return r;
  }
  // x of one row after both norms, with activations rounded as the kernel's are.
  std::vector<double> Row(size_t channel, size_t row) const {
    const size_t at = channel * m + row;
    std::vector<double> sum, magnitude, v(d), inner(ffn);
    Product(&attended[at * wide], &w_o[channel * d * wide], wide, d, &sum, &magnitude);
    for (size_t i = 0; i < d; ++i) v[i] = x[at * d + i] + sum[i];
    Norm(&n1_g[channel * d], &n1_b[channel * d], &v);
    Product(Rounded(v).data(), &w_1[channel * ffn * d], d, ffn, &sum, &magnitude);
    for (size_t i = 0; i < ffn; ++i) inner[i] = std::max(0.0, sum[i] + FromBf16(b_1[channel * ffn + i]));
    Product(Rounded(inner).data(), &w_2[channel * d * ffn], ffn, d, &sum, &magnitude);
    for (size_t i = 0; i < d; ++i) v[i] += sum[i] + b_2[channel * d + i];
    Norm(&n2_g[channel * d], &n2_b[channel * d], &v);
    return v;
  }
  std::vector<std::vector<double>> Rows(size_t row, bool mix) const {
    std::vector<std::vector<double>> v, mixed;
    for (size_t channel = 0; channel < c; ++channel) v.push_back(Row(channel, row));
    mixed = v;
    for (size_t gate = 0; gate < c && mix; ++gate) {
      double g = gate_b[gate];
      for (size_t from = 0; from < c; ++from) {
        for (size_t i = 0; i < d; ++i) g += v[from][i] * gate_w[(from * c + gate) * d + i];
      }
      for (size_t to = 0; to < c; ++to) {
        for (size_t i = 0; i < d && to != gate; ++i) mixed[to][i] += v[gate][i] / (1 + std::exp(-g));
      }
    }
    return mixed;
  }
};

// Root mean square error over that of the result. Roundings of activations that fall to the other side than in the
// reference are the most of it: one in 2^9 by one part in 2^8.
constexpr double kTolerance = 5e-4, kRoundedTolerance = kTolerance + 0x1p-9;

void CheckFinish(int rows, int channels, bool mix, bool concat, const Widths& widths = {}) {
  const LayerCase l(rows, channels, static_cast<uint64_t>(100 * rows + channels), widths);
  const size_t size = l.c * l.m * l.d;
  const Both<uint16_t> out(std::vector<uint16_t>(size, ToBf16(kPoison)));
  FinishArgs args = l.Args();
  if (!mix) args.gate_w = nullptr;
  if (concat) args.concat = out.device();
  const char* wrong = Finish(args, nullptr);
  ASSERT_EQ(wrong, nullptr) << wrong;
  Ok(cudaDeviceSynchronize());
  const auto got = l.x.Read();
  const auto got_z = concat ? out.Read() : l.z.Read();
  for (uint16_t value : got_z) ASSERT_TRUE(std::isfinite(FromBf16(value)) && value != ToBf16(kPoison));
  double error = 0, norm = 0, worst_z = 0;
  Random random(3);
  for (size_t row = 0; row < l.m; row += rows < 20 ? 1 : 1 + random.Below(rows < 400 ? 17 : 97)) {
    const auto want = l.Rows(row, mix && channels == 2);
    for (size_t c = 0; c < l.c; ++c) {
      for (size_t i = 0; i < l.d; ++i) {
        const size_t at = (c * l.m + row) * l.d + i;
        const double rounded = FromBf16(got_z[concat ? (row * l.c + c) * l.d + i : at]);
        const double value = concat ? rounded : got[at];
        error += (value - want[c][i]) * (value - want[c][i]), norm += want[c][i] * want[c][i];
        worst_z = std::max(worst_z, std::abs(rounded - value) / (0x1p-8 * std::abs(value) + 1e-30));
      }
    }
  }
  EXPECT_LT(std::sqrt(error / norm), concat ? kRoundedTolerance : kTolerance);
  EXPECT_LE(worst_z, 1);
  printf("  finish %d rows, %d channels: error %.2e\n", rows, channels, std::sqrt(error / norm));
}

TEST_F(CudaLayer, FinishOneChannel) {
  CheckFinish(64, 1, false, false);
  CheckFinish(1, 1, false, true);
  CheckFinish(333, 1, false, false);
}
TEST_F(CudaLayer, FinishTwoChannels) {
  CheckFinish(64, 2, false, false);
  CheckFinish(64, 2, true, false);
  CheckFinish(7, 2, true, true);
  CheckFinish(256, 2, true, false);
  CheckFinish(1100, 2, true, false);
  CheckFinish(2500, 2, true, false);
  CheckFinish(2500, 2, false, true);
}
TEST_F(CudaLayer, FinishOtherWidths) {
  CheckFinish(100, 2, true, false, {.d = 256, .wide = 256, .ffn = 512});
  CheckFinish(33, 2, true, true, {.d = 128, .wide = 64, .ffn = 128});
  CheckFinish(200, 3, false, false, {.d = 384, .wide = 320, .ffn = 640});
  EXPECT_FALSE(FinishFits(3, 512, 512, 1024, true));
  EXPECT_FALSE(FinishFits(2, 640, 512, 1024, false));
  EXPECT_FALSE(FinishFits(2, 512, 512, 1000, false));
}

// The tolerance is worth something.
TEST_F(CudaLayer, FinishDamageExceedsTheTolerance) {
  const LayerCase l(8, 2, 5);
  const auto want = l.Rows(3, true);
  const auto distance = [&](const std::vector<std::vector<double>>& other) {
    double error = 0, norm = 0;
    for (size_t c = 0; c < 2; ++c) {
      for (size_t i = 0; i < l.d; ++i) {
        error += (other[c][i] - want[c][i]) * (other[c][i] - want[c][i]), norm += want[c][i] * want[c][i];
      }
    }
    return std::sqrt(error / norm);
  };
  EXPECT_GT(distance(l.Rows(3, false)), kTolerance) << "no mixing";
  EXPECT_GT(distance({l.Rows(3, true)[1], l.Rows(3, true)[0]}), kTolerance) << "channels exchanged";
  EXPECT_GT(distance(l.Rows(4, true)), kTolerance) << "another row";
}

// The same bits whatever other rows there are, and every time.
TEST_F(CudaLayer, FinishBitsDoNotDependOnTheRows) {
  const LayerCase many(200, 2, 9);
  FinishArgs args = many.Args();
  const Both<uint16_t> a(std::vector<uint16_t>(2 * 200 * 512, 0)), b(std::vector<uint16_t>(2 * 200 * 512, 1));
  const std::vector<float> x = many.x.Read();
  args.concat = a.device();
  ASSERT_EQ(Finish(args, nullptr), nullptr);
  args.concat = b.device();
  for (int i = 0; i < 20; ++i) {
    Ok(cudaMemcpy(args.x, x.data(), x.size() * sizeof(float), cudaMemcpyHostToDevice));
    ASSERT_EQ(Finish(args, nullptr), nullptr);
  }
  Ok(cudaDeviceSynchronize());
  EXPECT_EQ(a.Read(), b.Read());
}

// The launches overlap as they do in a model: results are those of launches one after the other.
TEST_F(CudaLayer, OverlappingChangesNoBit) {
  for (int rows : {40, 256, 1300}) {
    const LayerCase l(rows, 2, 11);
    Random random(12);
    const Both<uint16_t> w(Matrix(2 * 1536 * 512, 0.04, &random)), w_bias(Matrix(2 * 256 * 512, 0.04, &random));
    const Both<uint16_t> y(std::vector<uint16_t>(2 * l.m * 1536, 0));
    const Both<float> bias(std::vector<float>(2 * l.m * 256, 0));
    const std::vector<float> x = l.x.Read();
    std::vector<float> seen[2], seen_bias[2];
    for (const bool overlap : {false, true}) {
      Ok(cudaMemcpy(l.x.device(), x.data(), x.size() * sizeof(float), cudaMemcpyHostToDevice));
      Ok(cudaDeviceSynchronize());
      FinishArgs finish = l.Args();
      finish.overlap_previous = overlap;
      for (int layer = 0; layer < 6; ++layer) {
        ASSERT_EQ(Finish(finish, nullptr), nullptr);
        ASSERT_EQ(Project({.rows = rows,
                           .channels = 2,
                           .in = 512,
                           .out = 1536,
                           .bias_out = 256,
                           .z = l.z.device(),
                           .w = w.device(),
                           .w_bias = w_bias.device(),
                           .y = y.device(),
                           .bias = bias.device(),
                           .overlap_previous = overlap},
                          nullptr),
                  nullptr);
      }
      Ok(cudaDeviceSynchronize());
      seen[overlap] = l.x.Read(), seen_bias[overlap] = bias.Read();
    }
    EXPECT_EQ(seen[0], seen[1]);
    EXPECT_EQ(seen_bias[0], seen_bias[1]);
  }
}

TEST_F(CudaLayer, Head) {
  for (const auto& [rows, in, hidden, tasks] :
       {std::tuple{1, 1024, 512, 1}, {300, 1024, 512, 2}, {3000, 256, 128, 1}}) {
    Random random(static_cast<uint64_t>(rows));
    const size_t k = static_cast<size_t>(in), h = static_cast<size_t>(hidden), t = static_cast<size_t>(tasks);
    const Both concat(Matrix(static_cast<size_t>(rows) * k, 1, &random)), w_1(Matrix(h * k, 0.04, &random));
    const Both b_1(Vector(h, 0, 0.3, &random)), w_2(Vector(t * h, 0, 0.1, &random)), b_2(Vector(t, 0, 1, &random));
    const Both<float> logits(std::vector<float>(static_cast<size_t>(rows) * t, kPoison));
    const char* wrong = Head({.rows = rows,
                              .in = in,
                              .hidden = hidden,
                              .tasks = tasks,
                              .concat = concat.device(),
                              .w_1 = w_1.device(),
                              .b_1 = b_1.device(),
                              .w_2 = w_2.device(),
                              .b_2 = b_2.device(),
                              .logits = logits.device()},
                             nullptr);
    ASSERT_EQ(wrong, nullptr) << wrong;
    Ok(cudaDeviceSynchronize());
    const auto got = logits.Read();
    double worst = 0;
    std::vector<double> sum, magnitude;
    for (size_t row = 0; row < static_cast<size_t>(rows); row += 1 + random.Below(9)) {
      Product(&concat[row * k], &w_1[0], k, h, &sum, &magnitude);
      for (size_t task = 0; task < t; ++task) {
        double want = b_2[task], bound = 1e-6;
        for (size_t i = 0; i < h; ++i) {
          want += std::max(0.0, sum[i] + b_1[i]) * w_2[task * h + i];
          bound += static_cast<double>(in + hidden) * 0x1p-23 * (magnitude[i] + std::abs(b_1[i])) *
                   std::abs(w_2[task * h + i]);
        }
        worst = std::max(worst, std::abs(got[row * t + task] - want) / bound);
      }
    }
    EXPECT_LT(worst, 1);
    printf("  head %d rows, %d -> %d, %d tasks: worst error %.3f of the bound\n", rows, in, hidden, tasks, worst);
  }
  EXPECT_FALSE(HeadFits(1024, 512, 3));
}

}  // namespace
}  // namespace backstory::cuda
