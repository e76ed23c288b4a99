#include "kernels/page.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <vector>

#include "tests/kernels/random.h"

namespace backstory {
namespace {

TEST(Page, RowsComeBackAsWritten) {
  for (PageShape shape :
       {PageShape{1, 1, 1}, PageShape{2, 8, 8}, PageShape{3, 5, 33}, PageShape{4, 64, 16},
        PageShape{1, 1, 1, Dtype::kBf16}, PageShape{3, 5, 33, Dtype::kBf16}, PageShape{4, 64, 16, Dtype::kBf16}}) {
    Random random(1);
    Page page(shape);
    std::vector<std::vector<float>> ks, vs;
    for (size_t row = 0; row < kPageRows; ++row) {
      ks.push_back(random.Normals(shape.kv_heads * shape.d_k));
      vs.push_back(random.Normals(shape.kv_heads * shape.d_v));
      WriteRow(shape, row, ks[row].data(), vs[row].data(), &page);
      if (shape.dtype == Dtype::kF32) continue;
      for (float& x : ks[row]) x = RoundToBf16(x);
      for (float& x : vs[row]) x = RoundToBf16(x);
    }
    std::vector<float> k(shape.kv_heads * shape.d_k), v(shape.kv_heads * shape.d_v);
    for (size_t row = 0; row < kPageRows; ++row) {
      ReadRow(shape, row, page.view(), k.data(), v.data());
      EXPECT_EQ(k, ks[row]);
      EXPECT_EQ(v, vs[row]);
    }
    ClearRows(shape, 100, &page);
    ReadRow(shape, 99, page.view(), k.data(), v.data());
    EXPECT_EQ(k, ks[99]);
    ReadRow(shape, 100, page.view(), k.data(), v.data());
    EXPECT_EQ(k, std::vector<float>(k.size(), 0));
    EXPECT_EQ(v, std::vector<float>(v.size(), 0));
  }
}

TEST(Page, Bf16PairsStandSideBySide) {
  const PageShape shape{.kv_heads = 2, .d_k = 5, .d_v = 20, .dtype = Dtype::kBf16};
  EXPECT_EQ(shape.bytes(), (2 * 128 * 6 + 2 * 2 * 128 * 16) * sizeof(Bf16));
  for (size_t row : {0u, 17u, 127u}) {
    EXPECT_EQ(shape.KIndex(1, row, 3), shape.KIndex(1, row, 2) + 1);
    EXPECT_EQ(shape.KIndex(1, row, 4), shape.KIndex(1, row, 2) + 32);
  }
  EXPECT_EQ(shape.KIndex(0, 17, 0), 6 * 16 + 2u);
  EXPECT_EQ(shape.VIndex(1, 7, 18), shape.VIndex(1, 6, 18) + 1);
  EXPECT_EQ(shape.VIndex(0, 6, 18), (128 * 16) + 3 * 32 + 2 * 2u);
}

TEST(Page, Bf16RoundsToNearestEvenAndDropsDenormals) {
  EXPECT_EQ(RoundToBf16(1.0f), 1.0f);
  EXPECT_EQ(RoundToBf16(1.0f + 0x1p-8f), 1.0f);  // a tie goes to even
  EXPECT_EQ(RoundToBf16(1.0f + 3 * 0x1p-8f), 1.0f + 0x1p-6f);
  EXPECT_EQ(RoundToBf16(1.0f + 0x1.02p-8f), 1.0f + 0x1p-7f);
  EXPECT_EQ(RoundToBf16(-3.3895e38f), -0x1.fep127f);
  EXPECT_EQ(RoundToBf16(3.4e38f), INFINITY);
  EXPECT_EQ(RoundToBf16(-INFINITY), -INFINITY);
  EXPECT_TRUE(std::isnan(RoundToBf16(NAN)));
  EXPECT_TRUE(std::isnan(RoundToBf16(std::bit_cast<float>(0x7f800001u))));
  EXPECT_EQ(RoundToBf16(0x1p-126f), 0x1p-126f);
  EXPECT_EQ(RoundToBf16(0x1.fffffcp-127f), 0.0f);
  EXPECT_TRUE(std::signbit(RoundToBf16(-1e-40f)));
}

TEST(Page, GatherCompactsARowList) {
  const PageShape shape{2, 3, 5};
  Random random(2);
  std::vector<Page> pages, out;
  std::vector<PageView> views;
  for (int i = 0; i < 3; ++i) pages.emplace_back(shape);
  for (int i = 0; i < 2; ++i) out.emplace_back(shape);
  for (size_t row = 0; row < 3 * kPageRows; ++row) {
    WriteRow(shape, row % kPageRows, random.Normals(6).data(), random.Normals(10).data(), &pages[row / kPageRows]);
  }
  for (const Page& page : pages) views.push_back(page.view());
  std::vector<uint32_t> rows;
  for (uint32_t row = 5; row < 3 * kPageRows; row += 2) rows.push_back(row);
  GatherRows(shape, views, rows, out);
  std::vector<float> k(6), v(10), want_k(6), want_v(10);
  for (size_t i = 0; i < rows.size(); ++i) {
    ReadRow(shape, i % kPageRows, out[i / kPageRows].view(), k.data(), v.data());
    ReadRow(shape, rows[i] % kPageRows, views[rows[i] / kPageRows], want_k.data(), want_v.data());
    ASSERT_EQ(k, want_k);
    ASSERT_EQ(v, want_v);
  }
}

TEST(Page, SummaryDescribesItsRows) {
  const PageShape shape{1, 2, 1};
  Page page(shape);
  const float k[3][2] = {{1, -2}, {3, 5}, {-1, 0}}, v[3] = {1, 2, 6};
  for (size_t row = 0; row < 3; ++row) WriteRow(shape, row, k[row], &v[row], &page);
  const std::vector<int64_t> time{10, 20, 35};
  const std::vector<int32_t> actions{2, 0, 2};
  const std::vector<uint32_t> sids{4, 4, 1};
  const std::vector<float> log_w{0, std::log(3.0f), 0};
  const PageSummary s = SummarisePage(
      shape, page.view(),
      {.time_us = time, .actions = actions, .sids = sids, .log_w = log_w, .action_classes = 3, .sid_codes = 5});
  EXPECT_EQ(s.count, 3u);
  EXPECT_EQ(s.mean_k, (std::vector<float>{1, 1}));
  EXPECT_EQ(s.min_k, (std::vector<float>{-1, -2}));
  EXPECT_EQ(s.max_k, (std::vector<float>{3, 5}));
  EXPECT_EQ(s.mean_v, (std::vector<float>{3}));
  EXPECT_EQ(s.actions, (std::vector<uint16_t>{1, 0, 2}));
  EXPECT_EQ(s.sids, (std::vector<uint16_t>{0, 1, 0, 0, 2}));
  EXPECT_EQ(s.first_time_us, 10);
  EXPECT_EQ(s.last_time_us, 35);
  EXPECT_FLOAT_EQ(s.log_weight, std::log(5.0f));
  const PageSummary empty = SummarisePage(shape, page.view(), {.action_classes = 3});
  EXPECT_EQ(empty.count, 0u);
  EXPECT_EQ(empty.log_weight, -INFINITY);
}

}  // namespace
}  // namespace backstory
