// Attention of every machine target against the readable twin, and the identities of kernels/attend.h.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/dispatch.h"
#include "tests/kernels/random.h"

namespace backstory {
namespace {

constexpr double kEps = 0x1p-24;

// One attention problem with its memory.
struct Problem {
  AttendArgs args;
  std::vector<float> q, bias, self_k, self_v, log_w;
  std::vector<const float*> log_w_pages;
  std::vector<Page> pages;
  std::vector<PageView> views;
  std::vector<std::vector<KeyRun>> run_lists;
  std::vector<std::span<const KeyRun>> runs;
  size_t rows = 0;
};

struct Shape {
  size_t queries = 1, heads = 1, kv_heads = 1, d_k = 16, d_v = 16, rows = 0;
  bool self = true, bias = true, per_query = false, log_w = false;
  float scale = 0.25f, magnitude = 1;
  Dtype dtype = Dtype::kF32;
};

constexpr Dtype kDtypes[] = {Dtype::kF32, Dtype::kBf16};

// Ascending disjoint runs over [0, rows): pieces of random length, some hidden, buckets falling with age.
std::vector<KeyRun> RandomRuns(size_t rows, size_t n_time, Random* random) {
  std::vector<KeyRun> runs;
  const size_t end = rows == 0 ? 0 : random->Below(rows + 1);
  for (size_t at = random->Chance(0.3) ? random->Below(rows + 1) : 0; at < end;) {
    const size_t length = 1 + random->Below(random->Chance(0.5) ? 300 : 12), stop = std::min(end, at + length);
    if (!random->Chance(0.2)) {
      runs.push_back({static_cast<uint32_t>(at), static_cast<uint32_t>(stop), static_cast<uint32_t>(rows - at),
                      static_cast<uint32_t>(random->Below(n_time))});
    }
    at = stop;
  }
  return runs;
}

Problem Make(const Shape& s, uint64_t seed) {
  constexpr size_t kPos = 64, kTime = 20;
  Random random(seed);
  Problem p;
  p.rows = s.rows;
  const PageShape shape{s.kv_heads, s.d_k, s.d_v, s.dtype};
  p.q = random.Normals(s.queries * s.heads * s.d_k, s.magnitude);
  p.bias = random.Normals(s.queries * s.heads * (kPos + kTime) + kPanel, s.magnitude);
  p.self_k = random.Normals(s.queries * s.kv_heads * s.d_k, s.magnitude);
  p.self_v = random.Normals(s.queries * s.kv_heads * s.d_v);
  for (size_t row = 0; row < s.rows; ++row) {
    if (row % kPageRows == 0) p.pages.emplace_back(shape);
    WriteRow(shape, row % kPageRows, random.Normals(s.kv_heads * s.d_k, s.magnitude).data(),
             random.Normals(s.kv_heads * s.d_v).data(), &p.pages.back());
  }
  p.log_w = random.Normals(p.pages.size() * kPageRows);
  for (size_t i = 0; i < p.pages.size(); ++i) {
    p.views.push_back(p.pages[i].view());
    p.log_w_pages.push_back(random.Chance(0.7) ? p.log_w.data() + i * kPageRows : nullptr);
  }
  for (size_t i = 0; i < (s.per_query ? s.queries : 1); ++i) p.run_lists.push_back(RandomRuns(s.rows, kTime, &random));
  for (const auto& list : p.run_lists) p.runs.emplace_back(list);
  p.args = {.queries = s.queries, .heads = s.heads, .shape = shape, .scale = s.scale, .q = p.q.data()};
  if (s.bias) p.args.bias = {.rows = p.bias.data(), .stride = kPos + kTime, .n_pos = kPos, .n_time = kTime};
  p.args.pages = p.views;
  if (s.log_w) p.args.log_w = p.log_w_pages.data();
  if (s.per_query) {
    p.args.runs = p.runs.data();
  } else {
    p.args.shared_runs = p.runs[0];
  }
  if (s.self) p.args.self_k = p.self_k.data(), p.args.self_v = p.self_v.data();
  return p;
}

struct Result {
  std::vector<float> o, lse;
};

Result RunAttend(const KernelTable& table, const Problem& p) {
  Result r{std::vector<float>(p.args.queries * p.args.heads * p.args.shape.d_v, NAN),
           std::vector<float>(p.args.queries * p.args.heads, NAN)};
  AlignedFloats workspace(AttendWorkspaceFloats(p.args.shape));
  AttendArgs args = p.args;
  args.o = r.o.data();
  args.lse = r.lse.data();
  args.workspace = workspace.data();
  table.attend(args);
  return r;
}

double MaxNorm(const float* rows, size_t count, size_t width) {
  double largest = 0;
  for (size_t r = 0; r < count; ++r) {
    double sum = 0;
    for (size_t i = 0; i < width; ++i) sum += static_cast<double>(rows[r * width + i]) * rows[r * width + i];
    largest = std::max(largest, std::sqrt(sum));
  }
  return largest;
}

// Bounds sum |q||k| + |bias| + |log w| of any logit, times scale: what rounding of a logit is relative to.
double LogitMagnitude(const Problem& p) {
  const PageShape& shape = p.args.shape;
  const double q = MaxNorm(p.q.data(), p.args.queries * p.args.heads, shape.d_k);
  double k = p.self_k.empty() ? 0 : MaxNorm(p.self_k.data(), p.args.queries * shape.kv_heads, shape.d_k);
  std::vector<float> row_k(shape.kv_heads * shape.d_k), row_v(shape.kv_heads * shape.d_v);
  for (size_t row = 0; row < p.rows; ++row) {
    ReadRow(shape, row % kPageRows, p.views[row / kPageRows], row_k.data(), row_v.data());
    k = std::max(k, MaxNorm(row_k.data(), shape.kv_heads, shape.d_k));
  }
  const double bias = MaxNorm(p.bias.data(), p.bias.size(), 1), log_w = MaxNorm(p.log_w.data(), p.log_w.size(), 1);
  return (q * k + 2 * bias) * p.args.scale + log_w;
}

// A logit is off by at most (d_k + 6) eps of its magnitude, weights by e to that and exp's own 2e-7, sums by one eps a
// term. bf16: q grows by up to 2^-9 when it is rounded (to what the twin computes with, too), and weights are off by
// 2^-9 where they meet V, but not in their sums.
void ExpectClose(const Problem& p, const Result& got, const Result& want) {
  const double rounding = p.args.shape.dtype == Dtype::kBf16 ? 0x1p-8 : 0;
  const double logit = LogitMagnitude(p) * (1 + rounding) * (static_cast<double>(p.args.shape.d_k) + 6) * kEps;
  const double weights = 2 * std::expm1(logit + 4e-7 + (static_cast<double>(p.rows) + 4) * kEps);
  for (size_t i = 0; i < want.o.size(); ++i) {
    ASSERT_NEAR(got.o[i], want.o[i], 6 * (weights + rounding)) << "o[" << i << "]";  // |v| stays below 6 sigma
  }
  for (size_t i = 0; i < want.lse.size(); ++i) {
    if (std::isinf(want.lse[i])) {
      ASSERT_EQ(got.lse[i], want.lse[i]) << "lse[" << i << "]";
    } else {
      ASSERT_NEAR(got.lse[i], want.lse[i], weights + 2 * kEps * (LogitMagnitude(p) + std::abs(want.lse[i]))) << i;
    }
  }
}

template <typename Body>
void ForEachTarget(Body body) {
  for (const KernelTable* table : AllKernels()) {
    if (table == &RefKernels()) continue;
    SCOPED_TRACE(table->target);
    body(*table);
  }
}

TEST(Dispatch, ThisMachineHasACompiledTarget) {
  ASSERT_GE(AllKernels().size(), 2u);
  EXPECT_STRNE(Kernels().target, "ref");
  {
    ScopedKernels scope(RefKernels());
    EXPECT_STREQ(Kernels().target, "ref");
  }
  EXPECT_STRNE(Kernels().target, "ref");
}

TEST(Attend, EveryTargetAgreesWithItsTwin) {
  const uint64_t seed = 20;
  RecordProperty("seed", std::to_string(seed));
  Random random(seed);
  const size_t queries[] = {1, 2, 5, 7, 25, 97, 100}, dims[] = {1, 7, 8, 16, 33, 64},
               rows[] = {0, 1, 127, 128, 129, 400};
  for (int trial = 0; trial < 120; ++trial) {
    const size_t kv_heads = 1 + random.Below(3);
    const Shape shape{.queries = queries[random.Below(7)],
                      .heads = kv_heads * (1 + random.Below(2)),
                      .kv_heads = kv_heads,
                      .d_k = dims[random.Below(6)],
                      .d_v = dims[random.Below(6)],
                      .rows = rows[random.Below(6)],
                      .self = random.Chance(0.6),
                      .bias = random.Chance(0.8),
                      .per_query = random.Chance(0.5),
                      .log_w = random.Chance(0.3),
                      .scale = random.Chance(0.5) ? 1.0f : 0.25f,
                      .dtype = trial % 2 == 0 ? Dtype::kF32 : Dtype::kBf16};
    SCOPED_TRACE("trial " + std::to_string(trial));
    const Problem p = Make(shape, seed + static_cast<uint64_t>(trial));
    const Result want = RunAttend(RefKernels(), p);
    ForEachTarget([&](const KernelTable& table) { ExpectClose(p, RunAttend(table, p), want); });
  }
}

TEST(Attend, HugeLogitsNeitherOverflowNorTurnIntoNan) {
  for (const Dtype dtype : kDtypes) {
    for (float magnitude : {30.0f, 1e3f, 1e-20f, 1e-38f, 1e-42f}) {
      const Problem p =
          Make({.queries = 7, .heads = 2, .kv_heads = 1, .rows = 300, .magnitude = magnitude, .dtype = dtype}, 5);
      const Result want = RunAttend(RefKernels(), p);
      ForEachTarget([&](const KernelTable& table) {
        const Result got = RunAttend(table, p);
        for (float x : got.o) ASSERT_TRUE(std::isfinite(x)) << magnitude;
        for (float x : got.lse) ASSERT_TRUE(std::isfinite(x)) << magnitude;
        if (magnitude < 1) ExpectClose(p, got, want);
      });
    }
  }
}

// The instruction takes denormals for zero, in and out: what that loses stays below the rows' number times 2^-126.
TEST(Attend, DenormalValuesMayVanishAndNothingElse) {
  Problem p = Make({.queries = 5, .heads = 1, .kv_heads = 1, .d_v = 3, .rows = 200, .dtype = Dtype::kBf16}, 12);
  const std::vector<KeyRun> whole{{0, 200, 200, 4}};
  p.args.shared_runs = whole;
  Random random(12);
  for (size_t row = 0; row < 200; ++row) {
    const std::vector<float> k = random.Normals(16), v{random.Normal(1e-38f), random.Normal(1e-42f), 0x1p-126f};
    WriteRow(p.args.shape, row % kPageRows, k.data(), v.data(), &p.pages[row / kPageRows]);
  }
  for (float& x : p.self_v) x = random.Normal(1e-39f);
  const Result want = RunAttend(RefKernels(), p);
  ForEachTarget([&](const KernelTable& table) {
    const Result got = RunAttend(table, p);
    for (size_t i = 0; i < got.o.size(); ++i) ASSERT_NEAR(got.o[i], want.o[i], 201 * 0x1p-126) << i;
  });
}

TEST(Attend, AnEmptyKeyListGivesZeroAndMinusInfinity) {
  Problem p = Make({.queries = 3, .heads = 2, .kv_heads = 2, .rows = 200, .self = false}, 6);
  p.args.shared_runs = {};
  for (const KernelTable* table : AllKernels()) {
    const Result got = RunAttend(*table, p);
    for (float x : got.o) EXPECT_EQ(x, 0.0f);
    for (float x : got.lse) EXPECT_EQ(x, -INFINITY);
  }
}

// Every number of rows from 1 to 200, at changing places: whatever the tiles, a row keeps its bits.
TEST(Attend, ARowsBitsDependOnItsOwnKeysAlone) {
  for (const Dtype dtype : kDtypes) {
    for (const bool per_query : {false, true}) {
      const Shape shape{.queries = 200,
                        .heads = 1,
                        .kv_heads = 1,
                        .d_k = 16,
                        .d_v = 24,
                        .rows = 150,
                        .per_query = per_query,
                        .dtype = dtype};
      const Problem all = Make(shape, 7);
      Problem part = Make(shape, 7);
      ForEachTarget([&](const KernelTable& table) {
        const Result want = RunAttend(table, all);
        for (size_t count = 1; count <= 200; ++count) {
          const size_t first = count * 37 % (201 - count);
          part.args.queries = count;
          part.args.q = part.q.data() + first * 16;
          part.args.bias.rows = part.bias.data() + first * part.args.bias.stride;
          part.args.self_k = part.self_k.data() + first * 16;
          part.args.self_v = part.self_v.data() + first * 24;
          if (per_query) part.args.runs = part.runs.data() + first;
          const Result got = RunAttend(table, part);
          ASSERT_EQ(0, std::memcmp(got.o.data(), want.o.data() + first * 24, got.o.size() * sizeof(float)))
              << count << " rows from " << first;
          ASSERT_EQ(0, std::memcmp(got.lse.data(), want.lse.data() + first, got.lse.size() * sizeof(float)))
              << count << " rows from " << first;
        }
      });
    }
  }
}

// The same visible rows give the same bits whether the invisible ones beside them hold anything or not, and whatever
// the other rows of the tile see of the page.
void ExpectNoTraceOfInvisibleRows(Dtype dtype) {
  const Shape shape{.queries = 9, .heads = 2, .kv_heads = 2, .rows = 500, .per_query = true, .dtype = dtype};
  const std::vector<KeyRun> mine{{20, 300, 480, 3}, {310, 450, 190, 3}};
  const auto with = [&](const std::vector<KeyRun>& other) {
    Problem p = Make(shape, 8);
    p.run_lists.assign(9, other);
    p.run_lists[4] = mine;
    for (size_t x = 0; x < 4; ++x) p.self_v[4 * 32 + x] = x % 2 == 0 ? -0.0f : 1e-40f;
    for (size_t i = 0; i < 9; ++i) p.runs[i] = p.run_lists[i];
    return p;
  };
  Problem quiet = with({});
  ClearRows(quiet.args.shape, 450 % kPageRows, &quiet.pages[3]);
  Problem loud = with({{0, 500, 480, 1}}), partial = with({{128, 460, 400, 2}});
  const std::vector<float> row(2 * 16, 7.0f);
  for (size_t i = 0; i < 20; ++i) WriteRow(loud.args.shape, i, row.data(), row.data(), &loud.pages[0]);
  for (size_t i = 300; i < 310; ++i) WriteRow(loud.args.shape, i % kPageRows, row.data(), row.data(), &loud.pages[2]);
  ForEachTarget([&](const KernelTable& table) {
    const Result want = RunAttend(table, quiet);
    for (const Problem* p : {&loud, &partial}) {
      const Result got = RunAttend(table, *p);
      EXPECT_EQ(0, std::memcmp(got.o.data() + 4 * 32, want.o.data() + 4 * 32, 32 * sizeof(float)));
      EXPECT_EQ(0, std::memcmp(got.lse.data() + 8, want.lse.data() + 8, 2 * sizeof(float)));
    }
  });
}

TEST(Attend, InvisibleRowsLeaveNoTrace) {
  for (const Dtype dtype : kDtypes) ExpectNoTraceOfInvisibleRows(dtype);
}

TEST(Attend, FoldedPagesGiveTheSameLogitsAsTables) {
  constexpr size_t kPos = 64, kTime = 20, kWidth = 24;
  Problem p = Make({.queries = 5, .heads = 2, .kv_heads = 1, .d_k = kWidth, .rows = 300}, 9);
  Random random(9);
  const std::vector<float> bpos = random.Normals(kPos * kWidth), btime = random.Normals(kTime * kWidth);
  for (size_t row = 0; row < 5 * 2; ++row) {
    float* bias = p.bias.data() + row * (kPos + kTime);
    const float* q = p.q.data() + row * kWidth;
    for (size_t u = 0; u < kPos + kTime; ++u) {
      const float* code = u < kPos ? bpos.data() + (kPos - 1 - u) * kWidth : btime.data() + (u - kPos) * kWidth;
      double dot = 0;
      for (size_t i = 0; i < kWidth; ++i) dot += static_cast<double>(q[i]) * code[i];
      bias[u] = static_cast<float>(dot);
    }
  }
  const std::vector<KeyRun> table_runs{{10, 100, 290, 5}, {110, 300, 190, 2}};
  p.args.shared_runs = table_runs;
  const Result want = RunAttend(RefKernels(), p);

  const FoldCodes codes(bpos.data(), kPos, btime.data(), kTime, kWidth);
  for (const KernelTable* table : AllKernels()) {
    SCOPED_TRACE(table->target);
    Problem folded = Make({.queries = 5, .heads = 2, .kv_heads = 1, .d_k = kWidth, .rows = 300}, 9);
    folded.bias = p.bias;  // the self key still reads it
    folded.args.bias.rows = folded.bias.data();
    std::vector<Page> scratch;
    for (size_t i = 0; i < p.pages.size(); ++i) {
      scratch.emplace_back(p.args.shape);
      table->fold_bias({.shape = p.args.shape,
                        .from = p.views[i].k,
                        .page = i,
                        .runs = table_runs,
                        .codes = &codes,
                        .to = scratch.back().k()});
      folded.views[i].k = scratch.back().k();
    }
    std::vector<KeyRun> folded_runs = table_runs;
    for (KeyRun& run : folded_runs) run.time = KeyRun::kNoBias;
    folded.args.shared_runs = folded_runs;
    ExpectClose(folded, RunAttend(*table, folded), want);
  }
}

// Runs that begin and end anywhere, touching or apart, ranks far beyond the codebook down to 0: the same values as the
// readable twin's, bit for bit (a sum of three has one order), and rows outside the runs as they were.
TEST(Attend, FoldingAgreesWithItsTwinBitForBit) {
  const uint64_t seed = 41;
  RecordProperty("seed", std::to_string(seed));
  Random random(seed);
  for (int trial = 0; trial < 60; ++trial) {
    const PageShape shape{1 + random.Below(3), 1 + random.Below(40), 8,
                          random.Chance(0.5) ? Dtype::kBf16 : Dtype::kF32};
    const size_t n_pos = 1 + random.Below(60), n_time = 1 + random.Below(9), rows = 3 * kPageRows;
    const FoldCodes codes(random.Normals(n_pos * shape.d_k).data(), n_pos, random.Normals(n_time * shape.d_k).data(),
                          n_time, shape.d_k);
    Page page(shape);
    for (size_t row = 0; row < kPageRows; ++row) {
      WriteRow(shape, row, random.Normals(shape.kv_heads * shape.d_k).data(),
               random.Normals(shape.kv_heads * shape.d_v).data(), &page);
    }
    std::vector<KeyRun> runs;
    for (size_t at = random.Below(200); at < rows;) {
      const size_t end = std::min(rows, at + 1 + random.Below(trial % 2 == 0 ? 5 : 90));
      runs.push_back({static_cast<uint32_t>(at), static_cast<uint32_t>(end),
                      static_cast<uint32_t>(end - at - 1 + random.Below(80)),
                      random.Chance(0.1) ? KeyRun::kNoBias : static_cast<uint32_t>(random.Below(n_time))});
      at = end + (random.Chance(0.5) ? 0 : random.Below(20));
    }
    const auto fold = [&](const KernelTable& table) {
      Page to(shape);
      table.fold_bias({.shape = shape, .from = page.k(), .page = 1, .runs = runs, .codes = &codes, .to = to.k()});
      const auto* k = static_cast<const std::byte*>(to.k());
      return std::vector<std::byte>(k, k + shape.k_size() * shape.element_bytes());
    };
    const std::vector<std::byte> want = fold(RefKernels());
    for (const KernelTable* table : AllKernels()) {
      SCOPED_TRACE(table->target);
      ASSERT_EQ(fold(*table), want) << "trial " << trial;
    }
  }
}

void ExpectMassesSumToOne(Dtype dtype) {
  Problem p = Make({.queries = 6, .heads = 4, .kv_heads = 2, .rows = 260, .log_w = true, .dtype = dtype}, 10);
  const float scale2 = 0.25f * 1.44269504088896340736f;
  for (const KernelTable* table : AllKernels()) {
    SCOPED_TRACE(table->target);
    Result r = RunAttend(*table, p);
    std::vector<float> mass(6 * p.pages.size() * kPageRows, 0.0f);
    AttendMassArgs args{.attend = p.args, .mass = mass.data()};
    AlignedFloats workspace(AttendWorkspaceFloats(p.args.shape));
    args.attend.lse = r.lse.data();
    args.attend.workspace = workspace.data();
    table->attend_mass(args);
    for (size_t i = 0; i < 6; ++i) {
      double sum = 0, self = 0;
      for (size_t j = 0; j < p.pages.size() * kPageRows; ++j) sum += mass[i * p.pages.size() * kPageRows + j];
      for (size_t h = 0; h < 4; ++h) {
        double dot = static_cast<double>(p.bias[(i * 4 + h) * 84 + 63]) + p.bias[(i * 4 + h) * 84 + 64];
        for (size_t x = 0; x < 16; ++x) {
          double q = p.q[(i * 4 + h) * 16 + x];
          if (dtype == Dtype::kBf16) q = RoundToBf16(p.q[(i * 4 + h) * 16 + x] * scale2) / scale2;
          dot += q * p.self_k[(i * 2 + h / 2) * 16 + x];
        }
        self += std::exp(dot * 0.25 - r.lse[i * 4 + h]) / 4;
      }
      EXPECT_NEAR(sum + self, 1.0, 1e-4);
    }
  }
}

TEST(Attend, MassesAreTheSoftmaxAndSumToOneWithTheSelfKey) {
  for (const Dtype dtype : kDtypes) ExpectMassesSumToOne(dtype);
}

void ExpectPartsMakeTheWhole(Dtype dtype) {
  Problem p = Make({.queries = 8, .heads = 2, .kv_heads = 2, .d_v = 20, .rows = 600, .dtype = dtype}, 11);
  const std::vector<KeyRun> whole{{0, 590, 595, 4}};
  p.args.shared_runs = whole;
  for (const KernelTable* table : AllKernels()) {
    SCOPED_TRACE(table->target);
    const Result want = RunAttend(RefKernels(), p);
    std::vector<Result> parts;
    const std::vector<KeyRun> pieces[] = {{{0, 77, 595, 4}}, {}, {{77, 512, 518, 4}}, {{512, 590, 83, 4}}};
    for (size_t i = 0; i < 4; ++i) {
      Problem part =
          Make({.queries = 8, .heads = 2, .kv_heads = 2, .d_v = 20, .rows = 600, .self = i == 2, .dtype = dtype}, 11);
      part.args.shared_runs = pieces[i];
      parts.push_back(RunAttend(*table, part));
    }
    std::vector<const float*> o, lse;
    for (const Result& part : parts) o.push_back(part.o.data()), lse.push_back(part.lse.data());
    Result got{std::vector<float>(want.o.size()), std::vector<float>(want.lse.size())};
    table->merge({.rows = 16, .d_v = 20, .o = o, .lse = lse, .out_o = got.o.data(), .out_lse = got.lse.data()});
    ExpectClose(p, got, want);
  }
}

TEST(Merge, PartsOfOneHistoryMakeTheWhole) {
  for (const Dtype dtype : kDtypes) ExpectPartsMakeTheWhole(dtype);
}

TEST(Merge, EmptyPartsHaveNoWeightWhateverTheyHold) {
  const float poison[2] = {NAN, NAN}, good[2] = {3, 4}, minus_inf = -INFINITY, lse = 1.5f;
  const float* os[2] = {poison, good};
  const float* lses[2] = {&minus_inf, &lse};
  const float* empty[2] = {&minus_inf, &minus_inf};
  for (const KernelTable* table : AllKernels()) {
    float o[2], out = 0;
    table->merge({.rows = 1, .d_v = 2, .o = os, .lse = lses, .out_o = o, .out_lse = &out});
    EXPECT_FLOAT_EQ(o[0], 3);
    EXPECT_FLOAT_EQ(o[1], 4);
    EXPECT_FLOAT_EQ(out, 1.5f);
    table->merge({.rows = 1, .d_v = 2, .o = os, .lse = empty, .out_o = o, .out_lse = &out});
    EXPECT_EQ(o[0], 0);
    EXPECT_EQ(out, -INFINITY);
  }
}

TEST(ClassifyPage, NamesWhatAPageLooksLike) {
  const std::vector<KeyRun> runs{{0, 200, 5000, 9}, {200, 700, 4800, 8}, {700, 1000, 300, 0}};
  EXPECT_EQ(ClassifyPage(runs, 0, 128, 256), PageKind::kUniform);
  EXPECT_EQ(ClassifyPage(runs, 1, 128, 256), PageKind::kSplit);
  EXPECT_EQ(ClassifyPage(runs, 6, 128, 256), PageKind::kTable);  // ranks fall below n_pos - 1
  EXPECT_EQ(ClassifyPage(runs, 7, 128, 256), PageKind::kTable);  // ends inside
  EXPECT_EQ(ClassifyPage(runs, 8, 128, 256), PageKind::kHidden);
}

}  // namespace
}  // namespace backstory
