// Attention of history rows on a card against the plain formula in float64: every mask, bias and page edge. Skipped,
// with the reason, where there is no Hopper card.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "models/grab/cuda/history_kernels.h"
#include "models/grab/key_runs.h"
#include "tests/kernels/cuda/on_card.h"
#include "tests/kernels/random.h"

namespace backstory::grab {
namespace {

constexpr int kPage = 128;
constexpr uint16_t kNan = 0x7fc0, kPoison = 0xffff;

using cuda::FromBf16;
using cuda::Ok;
using cuda::OnCard;
using cuda::ToBf16;

enum class Gaps { kHour, kSessions, kWild };
struct Case {
  std::string name;
  std::vector<std::pair<int, int>> channels;  // first, rows
  int heads = 2, d_h = 128, n_pos = 256, n_time = 64;
  Gaps gaps = Gaps::kHour;
  int tie_group = 0;         // rows of one tie group; 0: no ties
  bool ties_return = false;  // every third group has the key of an earlier one
  Windows windows;
  int sample = 1;  // every n-th row is checked, and those at page and tile edges
};

struct Facts {
  std::vector<int64_t> time, tie;
  std::vector<int32_t> previous, oldest, action;
};

Facts MakeFacts(const Case& test, int rows, Random* random) {
  Facts f;
  int64_t now = 1'700'000'000'000'000;
  std::map<int64_t, std::pair<int32_t, int32_t>> seen;  // key -> first and last row
  for (int i = 0; i < rows; ++i) {
    switch (test.gaps) {
      case Gaps::kHour:
        now += 3'600'000'000;
        break;
      case Gaps::kSessions:
        now += i % 13 == 0 ? 40'000'000'000 : static_cast<int64_t>(random->Below(90'000'000));
        break;
      case Gaps::kWild:
        now += static_cast<int64_t>(std::exp(random->Normal(4)) * 1e7);
        break;
    }
    int64_t key = i;
    if (test.tie_group > 0) {
      const int group = i / test.tie_group;
      key = 1'000'000 + (test.ties_return && group % 3 == 2 ? group / 9 : group);
      if (i % 7 == 3) key = i;  // some rows are alone
    }
    const auto [at, fresh] = seen.try_emplace(key, i, i);
    f.time.push_back(now), f.tie.push_back(key), f.action.push_back(static_cast<int32_t>(random->Below(3)));
    f.previous.push_back(fresh ? -1 : at->second.second);
    f.oldest.push_back(fresh ? -1 : at->second.first);
    at->second.second = i;
  }
  return f;
}

// All that a case needs, here and on the card.
struct World {
  World(const Case& c, uint64_t seed) : test(c), buckets(c.n_time) {
    Random random(seed);
    int pages = 0, rows = 0;
    for (const auto& [first, count] : c.channels)
      pages += (first + count + kPage - 1) / kPage, rows = std::max(rows, count);
    chunk = (rows + kPage - 1) / kPage * kPage;
    width = (c.n_pos + c.n_time + 7) / 8 * 8;
    const size_t head = static_cast<size_t>(kPage) * c.d_h, block = 2 * kLayers * c.heads * head;
    pool.assign((pages + 3) * block, kNan);  // whatever is not this layer's poisons what it touches
    std::vector<int32_t> free(pages + 3);
    std::iota(free.begin(), free.end(), 0);
    for (size_t i = free.size(); i > 1; --i) std::swap(free[i - 1], free[random.Below(i)]);
    const size_t all = c.channels.size() * chunk;
    qkv.assign(all * 3 * c.heads * c.d_h, kNan);
    table.assign(all * c.heads * width, NAN);
    for (size_t n = 0; n < c.channels.size(); ++n) {
      const auto [first, count] = c.channels[n];
      facts.push_back(MakeFacts(c, first + count, &random));
      auto& mine = blocks.emplace_back(free.end() - (first + count + kPage - 1) / kPage, free.end());
      free.resize(free.size() - mine.size());
      for (size_t page = 0; page < mine.size(); ++page) {
        for (int kv = 0; kv < 2; ++kv) {
          for (int h = 0; h < c.heads; ++h) {
            uint16_t* to = pool.data() + mine[page] * block + ((2 * kLayer + kv) * c.heads + h) * head;
            for (size_t x = 0; x < head; ++x) {
              const bool there = page * kPage + x / c.d_h < static_cast<size_t>(first + count);
              to[x] = there ? ToBf16(random.Normal()) : 0;
            }
          }
        }
      }
      for (int r = 0; r < count; ++r) {
        const size_t row = n * chunk + r;
        for (int x = 0; x < c.heads * c.d_h; ++x) qkv[row * 3 * c.heads * c.d_h + x] = ToBf16(random.Normal());
        for (int h = 0; h < c.heads; ++h) {
          // Large: a wrong look-up shows. In units before the scale.
          for (int x = 0; x < c.n_pos + c.n_time; ++x) table[(row * c.heads + h) * width + x] = random.Normal(12);
        }
      }
    }
  }

  const uint16_t* Key(size_t n, int kv, int h, int j) const {
    const size_t head = static_cast<size_t>(kPage) * test.d_h, block = 2 * kLayers * test.heads * head;
    return pool.data() + blocks[n][j / kPage] * block + ((2 * kLayer + kv) * test.heads + h) * head +
           (j % kPage) * static_cast<size_t>(test.d_h);
  }

  size_t all_rows() const { return test.channels.size() * chunk; }

  static constexpr int kLayers = 2, kLayer = 1;
  const Case& test;
  const TimeBuckets buckets;
  size_t chunk = 0;
  int width = 0;
  std::vector<uint16_t> pool, qkv;
  std::vector<float> table;
  std::vector<Facts> facts;
  std::vector<std::vector<int32_t>> blocks;
};

// The row's output, and the norm of what rounding P and the output to bf16 may do to it: 2^-8 of each weight and of
// each result at most, independent, so that norms add in squares.
std::vector<double> Expect(const World& w, size_t n, int h, int r, double* rounding) {
  const Case& c = w.test;
  const Facts& f = w.facts[n];
  const int i = c.channels[n].first + r;
  const size_t row = n * w.chunk + r;
  const uint16_t* q = w.qkv.data() + (row * 3 * c.heads + h) * c.d_h;
  const float* table = w.table.data() + (row * c.heads + h) * w.width;
  std::vector<double> logits(i + 1, -INFINITY);
  double top = -INFINITY;
  for (int j = 0; j <= i; ++j) {
    const int64_t age = f.time[i] - f.time[j];
    if (j < i && (f.tie[j] == f.tie[i] || i - j > c.windows.rows || age > c.windows.age_us)) continue;
    double dot = table[std::min(i - j, c.n_pos - 1)] + static_cast<double>(table[c.n_pos + w.buckets.Bucket(age)]);
    const uint16_t* k = w.Key(n, 0, h, j);
    for (int x = 0; x < c.d_h; ++x) dot += FromBf16(q[x]) * FromBf16(k[x]);
    logits[j] = dot / std::sqrt(c.d_h);
    top = std::max(top, logits[j]);
  }
  double sum = 0, squares = 0;
  std::vector<double> o(c.d_h, 0);
  for (int j = 0; j <= i; ++j) {
    if (logits[j] == -INFINITY) continue;
    const double p = std::exp(logits[j] - top);
    sum += p;
    const uint16_t* v = w.Key(n, 1, h, j);
    for (int x = 0; x < c.d_h; ++x) {
      const double value = p * FromBf16(v[x]);
      o[x] += value, squares += value * value;
    }
  }
  for (double& x : o) x /= sum;
  squares /= sum * sum;
  for (double x : o) squares += x * x;
  *rounding = std::sqrt(squares) / 256;
  return o;
}

// `outputs`: of the pages walked whole, and split if they can be.
void Check(const World& w, const std::vector<std::vector<uint16_t>>& outputs) {
  const Case& c = w.test;
  double worst = 0;
  size_t checked = 0;
  for (size_t n = 0; n < c.channels.size(); ++n) {
    const auto [first, rows] = c.channels[n];
    for (int r = 0; r < static_cast<int>(w.chunk); ++r) {
      const int edge = std::min((first + r) % kPage, r % kPage);
      if (r < rows && r % c.sample != 0 && edge > 1 && edge < kPage - 1 && r != rows - 1) continue;
      for (int h = 0; h < c.heads; ++h) {
        double rounding = 0;
        const std::vector<double> want = r < rows ? Expect(w, n, h, r, &rounding) : std::vector<double>();
        for (const std::vector<uint16_t>& output : outputs) {
          const uint16_t* row = output.data() + ((n * w.chunk + r) * c.heads + h) * c.d_h;
          if (r >= rows) {
            for (int x = 0; x < c.d_h; ++x)
              ASSERT_EQ(row[x], kPoison) << "channel " << n << " row " << r << " is nobody's";
            continue;
          }
          double squares = 0;
          for (int x = 0; x < c.d_h; ++x) squares += std::pow(FromBf16(row[x]) - want[x], 2);
          const double share = std::sqrt(squares) / rounding;
          ++checked;
          worst = std::max(worst, std::isnan(share) ? INFINITY : share);
          ASSERT_LE(share, 1) << c.name << (&output == &outputs[0] ? ", whole" : ", split") << ": channel " << n
                              << " row " << r << " of " << rows << " head " << h;
        }
      }
    }
  }
  std::printf("  %s: %zu rows and heads, worst error %.2f of the rounding's bound\n", c.name.c_str(), checked, worst);
}

void Attend(const Case& test) {
  const World w(test, 17 + test.name.size());
  std::vector<int64_t> edges;
  for (uint32_t b = 0; b < w.buckets.count(); ++b) edges.push_back(w.buckets.edge(b));
  const OnCard<uint16_t> pool(w.pool), qkv(w.qkv);
  const OnCard<float> table(w.table);
  const OnCard<int64_t> edges_on_card(edges);
  const OnCard<float> parts(std::vector<float>(CudaHistoryPartBytes(test.d_h) / 4, NAN));
  const OnCard<uint16_t> o(std::vector<uint16_t>(w.all_rows() * test.heads * test.d_h, kPoison));
  std::vector<std::unique_ptr<OnCard<int64_t>>> longs;
  std::vector<std::unique_ptr<OnCard<int32_t>>> ints;
  const auto upload = [](auto* to, const auto& from) {
    to->push_back(std::make_unique<typename std::remove_pointer_t<decltype(to)>::value_type::element_type>(from));
    return to->back()->data();
  };
  CudaHistoryArgs args{
      .channels = static_cast<int>(test.channels.size()),
      .heads = test.heads,
      .d_h = test.d_h,
      .layer = World::kLayer,
      .layers = World::kLayers,
      .n_pos = test.n_pos,
      .n_time = std::min(test.n_time, kCudaHistoryTimes),
      .table_width = w.width,
      .scale = 1 / std::sqrt(static_cast<float>(test.d_h)),
      .window_rows = test.windows.rows,
      .window_us = test.windows.age_us,
      .edges = edges_on_card.data(),
      .chunk_rows = static_cast<int64_t>(w.chunk),
      .qkv = qkv.data(),
      .table = table.data(),
      .o = o.data(),
      .parts = parts.data(),
      .pool = pool.data(),
      .pool_blocks = static_cast<int64_t>(w.pool.size() / (2 * World::kLayers * test.heads * kPage * test.d_h))};
  const std::vector<int32_t> poison(w.chunk * std::max({4, test.n_time, kCudaHistoryCodedPages * kPage / 4}),
                                    0x40000000);
  for (size_t n = 0; n < test.channels.size(); ++n) {
    const Facts& f = w.facts[n];
    args.channel[n] = {.first = test.channels[n].first,
                       .rows = test.channels[n].second,
                       .blocks = upload(&ints, w.blocks[n]),
                       .time_us = upload(&longs, f.time),
                       .tie = upload(&longs, f.tie),
                       .previous_tie = upload(&ints, f.previous),
                       .oldest_tie = upload(&ints, f.oldest),
                       .action = upload(&ints, f.action),
                       .limits = reinterpret_cast<CudaHistoryLimits*>(upload(&ints, poison)),
                       .bucket_begin = upload(&ints, poison),
                       .codes = upload(&ints, poison)};
  }
  const char* error = CudaHistoryFacts(args, nullptr);
  ASSERT_EQ(error, nullptr) << error;
  std::vector<std::vector<uint16_t>> outputs;
  for (const int splits : {1, CudaHistorySplits(args)}) {
    if (splits == 1 && !outputs.empty()) continue;
    args.splits = splits;
    Ok(cudaMemset(o.data(), 0xff, w.all_rows() * test.heads * test.d_h * 2));
    error = CudaHistoryAttend(args, nullptr);
    ASSERT_EQ(error, nullptr) << error;
    Ok(cudaDeviceSynchronize());
    outputs.push_back(o.Read());
  }
  Check(w, outputs);
}

class GrabHistoryAttend : public testing::Test {
 protected:
  void SetUp() override {
    int devices = 0, major = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) GTEST_SKIP() << "no GPU";
    Ok(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    if (major != 9) GTEST_SKIP() << "no GPU of compute capability 9.0";
  }
};

TEST_F(GrabHistoryAttend, LengthsAroundPagesAndTiles) {
  for (const int d_h : {64, 128}) {
    for (const int rows : {1, 4, 5, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1000}) {
      Attend({.name = "rows " + std::to_string(rows) + " d_h " + std::to_string(d_h),
              .channels = {{0, rows}},
              .d_h = d_h});
    }
  }
}

TEST_F(GrabHistoryAttend, RowsBehindAHistory) {
  for (const auto& [first, rows] :
       {std::pair{127, 1}, {128, 3}, {300, 4}, {1, 5}, {100, 29}, {128, 128}, {300, 200}, {1000, 64}}) {
    const std::string name = std::to_string(rows) + " behind " + std::to_string(first);
    Attend({.name = name, .channels = {{first, rows}}});
    Attend({.name = name + ", sessions, d_h 64", .channels = {{first, rows}}, .d_h = 64, .gaps = Gaps::kSessions});
  }
}

TEST_F(GrabHistoryAttend, LongHistories) {
  Attend({.name = "5000, an hour apart", .channels = {{0, 5000}}, .heads = 1, .sample = 61});
  Attend({.name = "5000, sessions", .channels = {{0, 5000}}, .heads = 1, .gaps = Gaps::kSessions, .sample = 61});
  Attend({.name = "5000, wild gaps, d_h 64",
          .channels = {{0, 5000}},
          .heads = 1,
          .d_h = 64,
          .gaps = Gaps::kWild,
          .sample = 61});
  // Masks and buckets by pair in pages that were not coded before.
  for (const int n_time : {64, 90}) {
    Attend({.name = "5000, sessions, ties that return, windows, " + std::to_string(n_time) + " time buckets",
            .channels = {{0, 5000}},
            .heads = 1,
            .d_h = n_time == 64 ? 128 : 64,
            .n_time = n_time,
            .gaps = Gaps::kSessions,
            .tie_group = 5,
            .ties_return = true,
            .windows = {.rows = 3000, .age_us = 8'000'000'000'000},
            .sample = 61});
  }
}

TEST_F(GrabHistoryAttend, Ties) {
  for (const int group : {2, 9, 100, 200}) {
    for (const bool back : {false, true}) {
      const std::string name = "ties of " + std::to_string(group) + (back ? " that return" : "");
      Attend({.name = name, .channels = {{0, 700}}, .gaps = Gaps::kSessions, .tie_group = group, .ties_return = back});
      Attend({.name = name + ", few rows", .channels = {{700, 3}}, .tie_group = group, .ties_return = back});
    }
  }
  Attend({.name = "all in one group", .channels = {{0, 400}}, .tie_group = 1000});
}

TEST_F(GrabHistoryAttend, Windows) {
  for (const int64_t rows : {0, 1, 127, 128, 300}) {
    Attend({.name = "window of " + std::to_string(rows) + " rows", .channels = {{0, 900}}, .windows = {.rows = rows}});
    Attend({.name = "window of " + std::to_string(rows) + " rows, few",
            .channels = {{777, 2}},
            .windows = {.rows = rows}});
  }
  for (const int64_t hours : {0, 1, 100, 500}) {
    const Windows windows{.age_us = hours * 3'600'000'000};
    Attend({.name = "window of " + std::to_string(hours) + " hours", .channels = {{0, 900}}, .windows = windows});
  }
  Attend({.name = "both windows, sessions, ties",
          .channels = {{250, 900}},
          .gaps = Gaps::kSessions,
          .tie_group = 5,
          .ties_return = true,
          .windows = {.rows = 400, .age_us = 1'000'000'000'000}});
}

TEST_F(GrabHistoryAttend, ChannelsOfDifferentLengths) {
  Attend(
      {.name = "three channels", .channels = {{0, 300}, {130, 0}, {77, 520}}, .gaps = Gaps::kSessions, .tie_group = 3});
  Attend({.name = "few rows of two", .channels = {{0, 1}, {640, 4}}});
}

TEST_F(GrabHistoryAttend, TableWidths) {
  for (const auto& [n_pos, n_time] :
       {std::pair{2, 2}, {5, 3}, {33, 300}, {900, 64}, {1500, 30}, {64, 65}, {300, 128}}) {
    const std::string name = std::to_string(n_pos) + " positions, " + std::to_string(n_time) + " time buckets";
    Attend({.name = name, .channels = {{0, 700}}, .n_pos = n_pos, .n_time = n_time, .gaps = Gaps::kSessions});
    Attend(
        {.name = name + ", few rows", .channels = {{500, 2}}, .n_pos = n_pos, .n_time = n_time, .gaps = Gaps::kWild});
  }
}

}  // namespace
}  // namespace backstory::grab
