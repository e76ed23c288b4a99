// GEMM and row-wise kernels of every machine target against the readable twin: odd sizes, offsets, extremes, bits.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/dispatch.h"
#include "tests/kernels/random.h"

namespace backstory {
namespace {

constexpr double kEps = 0x1p-24;

template <typename Body>
void ForEachTarget(Body body) {
  for (const KernelTable* table : AllKernels()) {
    SCOPED_TRACE(table->target);
    body(*table);
  }
}

TEST(Gemm, EveryTargetAgreesWithExactSums) {
  const uint64_t seed = 30;
  RecordProperty("seed", std::to_string(seed));
  Random random(seed);
  const size_t ms[] = {1, 2, 3, 4, 5, 6, 7, 13, 24, 25, 50}, sizes[] = {1, 2, 15, 16, 17, 31, 32, 48, 65, 130};
  for (int trial = 0; trial < 120; ++trial) {
    const size_t m = ms[random.Below(11)], k = sizes[random.Below(10)], n = sizes[random.Below(10)];
    const size_t lda = k + random.Below(3), ldc = n + random.Below(3);
    const bool relu = random.Chance(0.3), biased = random.Chance(0.5);
    const std::vector<float> a = random.Normals(m * lda + 1), b = random.Normals(k * n), bias = random.Normals(n + 1);
    const PackedMatrix packed(b.data(), k, n, n);
    ForEachTarget([&](const KernelTable& table) {
      std::vector<float> c(m * ldc + 1, 77.0f);
      // +1: neither A nor C nor the bias is aligned to anything but a float.
      table.gemm({.a = a.data() + 1,
                  .lda = lda,
                  .m = m,
                  .b = &packed,
                  .bias = biased ? bias.data() + 1 : nullptr,
                  .relu = relu,
                  .c = c.data() + 1,
                  .ldc = ldc});
      for (size_t i = 0; i < m; ++i) {
        for (size_t j = 0; j < n; ++j) {
          double sum = biased ? bias[j + 1] : 0, magnitude = std::abs(sum);
          for (size_t x = 0; x < k; ++x) {
            const double product = static_cast<double>(a[1 + i * lda + x]) * b[x * n + j];
            sum += product;
            magnitude += std::abs(product);
          }
          if (relu) sum = std::max(sum, 0.0);
          // Without fused multiply-add a product rounds too: k + 2 roundings become 2k + 2.
          ASSERT_NEAR(c[1 + i * ldc + j], sum, (2 * static_cast<double>(k) + 2) * kEps * magnitude)
              << "m " << m << " k " << k << " n " << n << " at " << i << ", " << j;
        }
        for (size_t j = n; j < ldc && i + 1 < m; ++j)
          ASSERT_EQ(c[1 + i * ldc + j], 77.0f) << "wrote beyond its columns";
      }
    });
  }
}

TEST(Gemm, Bf16RoundsBothSidesAndSumsInFloat) {
  Random random(36);
  const size_t ms[] = {1, 2, 3, 5, 6, 7, 24, 25, 50}, ns[] = {1, 15, 16, 17, 48, 65, 130},
               ks[] = {1, 2, 15, 16, 17, 33, 130, 511, 512, 513, 1030};
  for (int trial = 0; trial < 150; ++trial) {
    const size_t m = ms[random.Below(9)], k = ks[random.Below(11)], n = ns[random.Below(7)];
    const size_t lda = k + random.Below(3), ldc = n + random.Below(3);
    const float scale = random.Chance(0.2) ? 1e-20f : 1;  // products of two are denormal
    const bool relu = random.Chance(0.3), biased = random.Chance(0.5);
    const std::vector<float> a = random.Normals(m * lda + 1, scale), b = random.Normals(k * n, scale),
                             bias = random.Normals(n + 1, scale);
    const PackedMatrix packed(b.data(), k, n, n, Dtype::kBf16);
    EXPECT_EQ(packed.bytes(), (k + 1) / 2 * 2 * ((n + 15) / 16 * 16) * sizeof(Bf16));
    ForEachTarget([&](const KernelTable& table) {
      std::vector<float> c(m * ldc + 1, 77.0f);
      table.gemm({.a = a.data() + 1,
                  .lda = lda,
                  .m = m,
                  .b = &packed,
                  .bias = biased ? bias.data() + 1 : nullptr,
                  .relu = relu,
                  .c = c.data() + 1,
                  .ldc = ldc});
      for (size_t i = 0; i < m; ++i) {
        for (size_t j = 0; j < n; ++j) {
          double sum = biased ? bias[j + 1] : 0, magnitude = std::abs(sum);
          for (size_t x = 0; x < k; ++x) {
            const double product = static_cast<double>(RoundToBf16(a[1 + i * lda + x])) * RoundToBf16(b[x * n + j]);
            sum += product;
            magnitude += std::abs(product);
          }
          if (relu) sum = std::max(sum, 0.0);
          const double terms = static_cast<double>(k);
          ASSERT_NEAR(c[1 + i * ldc + j], sum, (2 * terms + 2) * kEps * magnitude + (terms + 1) * 0x1p-126)
              << "m " << m << " k " << k << " n " << n << " at " << i << ", " << j;
        }
        for (size_t j = n; j < ldc && i + 1 < m; ++j)
          ASSERT_EQ(c[1 + i * ldc + j], 77.0f) << "wrote beyond its columns";
      }
    });
  }
}

// B = 1: what comes out is the operand as it was rounded, bit for bit the same on every target.
TEST(Gemm, Bf16OperandsAreRoundedAlikeOnEveryTarget) {
  std::vector<float> a{0.0f,
                       -0.0f,
                       1.0f,
                       1.0f + 0x1p-8f,
                       1.0f + 3 * 0x1p-8f,
                       -1.0f - 0x1.02p-8f,
                       3.4e38f,
                       INFINITY,
                       -3.3895e38f,
                       0x1p-126f,
                       1e-40f,
                       -1e-38f,
                       NAN,
                       7e-39f};
  Random random(37);
  for (int i = 0; i < 500; ++i) a.push_back(random.Normal(random.Chance(0.3) ? 1e-38f : 10.0f));
  const float one = 1;
  const PackedMatrix packed(&one, 1, 1, 1, Dtype::kBf16);
  ForEachTarget([&](const KernelTable& table) {
    std::vector<float> c(a.size());
    table.gemm({.a = a.data(), .lda = 1, .m = a.size(), .b = &packed, .c = c.data(), .ldc = 1});
    for (size_t i = 0; i < a.size(); ++i) {
      if (std::isnan(a[i])) {
        EXPECT_TRUE(std::isnan(c[i]));
      } else {
        EXPECT_EQ(c[i], RoundToBf16(a[i])) << a[i];
      }
    }
  });
}

TEST(Gemm, FirstPanelLeavesEarlierColumnsAlone) {
  Random random(35);
  for (size_t n : {16u, 40u, 64u, 130u, 16u, 40u, 64u, 130u}) {
    const std::vector<float> a = random.Normals(7 * 5), b = random.Normals(5 * n);
    const PackedMatrix packed(b.data(), 5, n, n, random.Chance(0.5) ? Dtype::kF32 : Dtype::kBf16);
    ForEachTarget([&](const KernelTable& table) {
      std::vector<float> all(7 * n);
      table.gemm({.a = a.data(), .lda = 5, .m = 7, .b = &packed, .c = all.data(), .ldc = n});
      for (size_t first = 0; first <= (n + 15) / 16; ++first) {
        std::vector<float> part(7 * n, 9.0f);
        table.gemm({.a = a.data(), .lda = 5, .m = 7, .b = &packed, .first_panel = first, .c = part.data(), .ldc = n});
        for (size_t i = 0; i < 7 * n; ++i) ASSERT_EQ(part[i], i % n < first * 16 ? 9.0f : all[i]) << n << ", " << first;
      }
    });
  }
}

// Every number of rows from 1 to 200, at changing places.
TEST(Gemm, BitsDoNotDependOnTheRowsBeside) {
  Random random(31);
  constexpr size_t kRows = 200, kWidth = 71, kColumns = 150;
  const std::vector<float> a = random.Normals(kRows * kWidth), b = random.Normals(kWidth * kColumns);
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBf16}) {
    const PackedMatrix packed(b.data(), kWidth, kColumns, kColumns, dtype);
    ForEachTarget([&](const KernelTable& table) {
      std::vector<float> all(kRows * kColumns), part(kRows * kColumns);
      table.gemm({.a = a.data(), .lda = kWidth, .m = kRows, .b = &packed, .c = all.data(), .ldc = kColumns});
      for (size_t count = 1; count <= kRows; ++count) {
        const size_t first = count * 37 % (kRows + 1 - count);
        table.gemm({.a = a.data() + first * kWidth,
                    .lda = kWidth,
                    .m = count,
                    .b = &packed,
                    .c = part.data(),
                    .ldc = kColumns});
        ASSERT_EQ(0, std::memcmp(all.data() + first * kColumns, part.data(), count * kColumns * sizeof(float)))
            << count << " rows from " << first;
      }
    });
  }
}

TEST(LayerNorm, EveryTargetAgreesWithItsTwin) {
  Random random(32);
  for (size_t n : {1u, 7u, 8u, 15u, 64u, 100u, 513u}) {
    std::vector<float> x = random.Normals(3 * n);
    for (size_t i = 0; i < n; ++i) x[n + i] = 5.0f;          // no variance at all
    for (size_t i = 0; i < n; ++i) x[2 * n + i] += 1000.0f;  // a mean far from zero
    const std::vector<float> g = random.Normals(n), b = random.Normals(n);
    std::vector<float> want(3 * n);
    RefKernels().layer_norm({.x = x.data(), .rows = 3, .n = n, .g = g.data(), .b = b.data(), .y = want.data()});
    ForEachTarget([&](const KernelTable& table) {
      std::vector<float> y = x;
      table.layer_norm({.x = y.data(), .rows = 3, .n = n, .g = g.data(), .b = b.data(), .y = y.data()});
      for (size_t i = 0; i < 3 * n; ++i) {
        // The mean is off by (n + 1) eps of it and the deviation divides that: 1000 / 1 in the last row, but the
        // constant row divides by sqrt(eps_norm) = 1 / 316.
        const double mean = i < n ? 1 : i < 2 * n ? 5 * 316 : 1000;
        const double scale = std::abs(g[i % n]) * (mean + 4) + std::abs(b[i % n]);
        ASSERT_NEAR(y[i], want[i], scale * (2 * static_cast<double>(n) + 8) * kEps) << "n " << n << " at " << i;
      }
      const Moments moments = table.moments(x.data(), n);
      const Moments exact = RefKernels().moments(x.data(), n);
      ASSERT_NEAR(moments.mean, exact.mean, static_cast<double>(n) * kEps * 4);
      ASSERT_NEAR(moments.m2, exact.m2, (2 * static_cast<double>(n) + 8) * kEps * (exact.m2 + 1));
    });
  }
}

TEST(Sigmoid, IsAccurateAndSaturates) {
  for (size_t n : {1u, 3u, 8u, 21u, 400u}) {
    std::vector<float> x(n);
    for (size_t i = 0; i < n; ++i) x[i] = static_cast<float>(i) * 0.6f - 120.0f + static_cast<float>(n % 7) * 17;
    if (n > 20) x[0] = -INFINITY, x[1] = INFINITY, x[2] = 0, x[3] = -1e30f, x[4] = 1e30f;
    ForEachTarget([&](const KernelTable& table) {
      std::vector<float> y = x, gated(n, 2.0f);
      table.sigmoid(n, y.data());
      table.sigmoid_gate(x.data(), n, gated.data());
      for (size_t i = 0; i < n; ++i) {
        // |x| log2(e) rounds before exp: its error is |x| eps relative, damped by the smaller of sigmoid and 1 -
        // sigmoid.
        const double want = 1 / (1 + std::exp(-static_cast<double>(x[i])));
        ASSERT_NEAR(y[i], want, 6e-7 + 1e-7 * want) << x[i];
        ASSERT_NEAR(gated[i], 2 * want, 2 * (6e-7 + 1e-7 * want)) << x[i];
        ASSERT_GE(y[i], 0);
        ASSERT_LE(y[i], 1);
      }
    });
  }
}

TEST(Mix, AddsTheOtherChannelsFromTheirOldValues) {
  Random random(33);
  for (size_t channels : {1u, 2u, 3u, 16u}) {
    for (size_t d : {1u, 8u, 19u}) {
      constexpr size_t kRows = 5;
      const std::vector<float> x = random.Normals(channels * kRows * d), beta = random.Normals(kRows * channels);
      const auto run = [&](const KernelTable& table) {
        std::vector<float> y = x;
        std::vector<float*> rows;
        for (size_t c = 0; c < channels; ++c) rows.push_back(y.data() + c * kRows * d);
        table.mix({.x = rows, .beta = beta.data(), .rows = kRows, .d = d});
        return y;
      };
      const std::vector<float> want = run(RefKernels());
      if (channels == 1) {
        EXPECT_EQ(want, x);
      }
      ForEachTarget([&](const KernelTable& table) {
        const std::vector<float> got = run(table);
        for (size_t i = 0; i < got.size(); ++i) {
          ASSERT_NEAR(got[i], want[i], 20.0 * static_cast<double>(channels) * 2 * kEps * 10);
        }
      });
    }
  }
}

TEST(EmbeddingBag, SumsRowsAndLeavesEmptyListsZero) {
  Random random(34);
  for (size_t width : {1u, 8u, 13u, 16u}) {
    const std::vector<float> table_rows = random.Normals(10 * width);
    const std::vector<uint32_t> offsets{0, 2, 2, 5}, ids{3, 9, 1, 1, 0};
    ForEachTarget([&](const KernelTable& table) {
      std::vector<float> out(3 * (width + 2), 5.0f);
      table.embedding_bag({.table = table_rows.data(),
                           .width = width,
                           .offsets = offsets.data(),
                           .ids = ids.data(),
                           .rows = 3,
                           .out = out.data(),
                           .out_stride = width + 2});
      for (size_t i = 0; i < width; ++i) {
        EXPECT_NEAR(out[i], table_rows[3 * width + i] + table_rows[9 * width + i], 1e-6);
        EXPECT_EQ(out[width + 2 + i], 0.0f);
        EXPECT_NEAR(out[2 * (width + 2) + i], 2 * table_rows[width + i] + table_rows[i], 2e-6);
      }
      EXPECT_EQ(out[width], 5.0f);
    });
  }
}

TEST(Add, AddsOddLengths) {
  for (size_t n : {0u, 1u, 9u, 33u}) {
    ForEachTarget([&](const KernelTable& table) {
      std::vector<float> x(n + 1, 1.0f), y(n + 1, 2.0f);
      table.add(y.data(), n, x.data());
      for (size_t i = 0; i < n; ++i) EXPECT_EQ(x[i], 3.0f);
      EXPECT_EQ(x[n], 1.0f);
    });
  }
}

}  // namespace
}  // namespace backstory
