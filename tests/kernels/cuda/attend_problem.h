// A random attention problem for kernels/cuda/attend.h in host memory, and its answer in double precision with a bound
// on what a bf16 kernel may differ by. Needs no CUDA.
#ifndef BACKSTORY_TESTS_KERNELS_CUDA_ATTEND_PROBLEM_H_
#define BACKSTORY_TESTS_KERNELS_CUDA_ATTEND_PROBLEM_H_

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "kernels/cuda/attend.h"
#include "tests/kernels/cuda/bf16.h"
#include "tests/kernels/random.h"

namespace backstory::cuda {

struct UserShape {
  int rows = 1;     // query rows
  int history = 0;  // K/V rows
};

struct CaseShape {
  std::vector<UserShape> users;
  int heads = 2, kv_heads = 2, d_h = 128;
  bool self = true, bias = true, o_is_float = true;
  int split_pages = 0;       // 0: the default
  int item_splits = 0;       // 0: the default
  bool short_pages = false;  // any page may hold fewer than 128 rows, not only a user's last
  float magnitude = 1;       // of q and k
};

struct HostCase {
  CaseShape shape;
  float scale = 1;
  int64_t total_rows = 0, pool_pages = 0, width = 0, kv_width = 0;
  std::vector<uint16_t> q, self_k, self_v, k_pool, v_pool;
  std::vector<float> bias;
  std::vector<Problem> problems;
  std::vector<PageEntry> pages;
};

inline std::vector<uint16_t> RandomBf16(size_t n, float scale, Random* random) {
  std::vector<uint16_t> x(n);
  for (uint16_t& v : x) v = ToBf16(random->Normal(scale));
  return x;
}

inline PageEntry RandomEntry(int32_t page, int valid, int segments, Random* random) {
  PageEntry entry{.page = page, .valid = static_cast<int16_t>(valid)};
  if (segments == 0 || random->Chance(0.2)) return entry;  // FOLDED
  entry.segment_above = static_cast<int16_t>(random->Below(segments));
  if (valid > 1 && random->Chance(0.5)) {
    entry.boundary = static_cast<int16_t>(1 + random->Below(valid - 1));
    entry.segment_below = static_cast<int16_t>(random->Below(segments));
    if (random->Chance(0.1)) entry.segment_below = PageEntry::kNoBias;
  }
  return entry;
}

inline HostCase MakeCase(const CaseShape& shape, uint64_t seed) {
  Random random(seed);
  HostCase c{.shape = shape, .scale = 1 / std::sqrt(static_cast<float>(shape.d_h))};
  c.width = int64_t{shape.heads} * shape.d_h;
  c.kv_width = int64_t{shape.kv_heads} * shape.d_h;
  for (const UserShape& user : shape.users) {
    const int segments = shape.bias ? static_cast<int>(1 + random.Below(20)) : 0;
    Problem problem{.bias = static_cast<int64_t>(c.bias.size()),
                    .first_row = static_cast<int32_t>(c.total_rows + 3),  // rows between problems belong to nobody
                    .rows = user.rows,
                    .first_page = static_cast<int32_t>(c.pages.size()),
                    .segments = segments,
                    .bias_stride = (user.rows + 3) / 4 * 4 + 8};
    if (segments > 0) problem.self_segment = static_cast<int32_t>(random.Below(segments));
    const std::vector<float> table = random.Normals(size_t(shape.heads) * segments * problem.bias_stride, 3);
    c.bias.insert(c.bias.end(), table.begin(), table.end());
    for (int left = user.history; left > 0;) {
      const int most = std::min(left, kPageRows);
      const int valid = shape.short_pages ? static_cast<int>(1 + random.Below(most)) : most;
      c.pages.push_back(RandomEntry(static_cast<int32_t>(c.pages.size()), valid, segments, &random));
      left -= valid;
    }
    problem.pages = static_cast<int32_t>(c.pages.size()) - problem.first_page;
    c.total_rows = problem.first_row + user.rows;
    c.problems.push_back(problem);
  }
  c.total_rows += 2;
  // Ids in no order, a page that nobody names.
  c.pool_pages = static_cast<int64_t>(c.pages.size()) + 1;
  std::vector<int32_t> ids(c.pool_pages);
  std::iota(ids.begin(), ids.end(), 0);
  for (size_t i = ids.size() - 1; i > 0; --i) std::swap(ids[i], ids[random.Below(i + 1)]);
  for (PageEntry& entry : c.pages) entry.page = ids[entry.page];
  c.q = RandomBf16(c.total_rows * c.width, shape.magnitude, &random);
  c.self_k = RandomBf16(c.total_rows * c.kv_width, shape.magnitude, &random);
  c.self_v = RandomBf16(c.total_rows * c.kv_width, 1, &random);
  c.k_pool = RandomBf16(c.pool_pages * c.kv_width * kPageRows, shape.magnitude, &random);
  c.v_pool = RandomBf16(c.pool_pages * c.kv_width * kPageRows, 1, &random);
  for (const PageEntry& entry : c.pages) {
    for (int head = 0; head < shape.kv_heads; ++head) {
      const size_t at = (size_t(entry.page) * shape.kv_heads + head) * kPageRows * shape.d_h;
      for (int x = entry.valid * shape.d_h; x < kPageRows * shape.d_h; ++x) {
        c.k_pool[at + x] = ToBf16(100);  // would dominate if it were seen
        c.v_pool[at + x] = 0;
      }
    }
  }
  return c;
}

// The answer for one row and head, and how far a correct kernel may be from it.
struct Answer {
  std::vector<double> o, o_bound;
  double lse = 0, lse_bound = 0;
};

inline Answer Reference(const HostCase& c, const Problem& problem, int row, int head) {
  const int d = c.shape.d_h, kv_head = head / (c.shape.heads / c.shape.kv_heads);
  const uint16_t* q = &c.q[(problem.first_row + row) * c.width + head * d];
  std::vector<double> logits;
  std::vector<const uint16_t*> values;
  double magnitude = 0;  // of what goes into a logit
  const auto see = [&](const uint16_t* k, const uint16_t* v, int segment) {
    double dot = 0, q2 = 0, k2 = 0, bias = 0;
    for (int x = 0; x < d; ++x) {
      dot += double{FromBf16(q[x])} * FromBf16(k[x]);
      q2 += double{FromBf16(q[x])} * FromBf16(q[x]);
      k2 += double{FromBf16(k[x])} * FromBf16(k[x]);
    }
    if (segment >= 0)
      bias = c.bias[problem.bias + (int64_t{head} * problem.segments + segment) * problem.bias_stride + row];
    logits.push_back((dot + bias) * c.scale);
    values.push_back(v);
    magnitude = std::max(magnitude, (std::sqrt(q2 * k2) + 2 * std::abs(bias)) * c.scale);
  };
  if (c.shape.self) {
    const size_t at = (problem.first_row + row) * c.kv_width + kv_head * d;
    see(&c.self_k[at], &c.self_v[at], problem.self_segment);
  }
  for (int j = 0; j < problem.pages; ++j) {
    const PageEntry& entry = c.pages[problem.first_page + j];
    const size_t page = (size_t(entry.page) * c.shape.kv_heads + kv_head) * kPageRows * d;
    for (int y = 0; y < entry.valid; ++y) {
      see(&c.k_pool[page + y * d], &c.v_pool[page + y * d],
          y < entry.boundary ? entry.segment_below : entry.segment_above);
    }
  }
  Answer answer{std::vector<double>(d), std::vector<double>(d), -INFINITY, 0};
  if (logits.empty()) return answer;
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  std::vector<double> absolute(d);
  for (size_t j = 0; j < logits.size(); ++j) {
    const double p = std::exp(logits[j] - top);
    sum += p;
    for (int x = 0; x < d; ++x) {
      answer.o[x] += p * FromBf16(values[j][x]);
      absolute[x] += p * std::abs(FromBf16(values[j][x]));
    }
  }
  answer.lse = top + std::log(sum);
  // A logit: d products and additions and a few operations more, each off by 2^-23 of the magnitudes (tensor cores do
  // not round sums, they cut). Weights: e to that and exp2's 2^-22, sums one 2^-23 a term (pages are summed by 8). Only
  // P V sees P in bf16, off by 2^-8. The result is rounded to fp32 or bf16.
  const double eps = 0x1p-23, logit = magnitude * (d + 8) * eps + 4 * eps * std::abs(answer.lse);
  const double weight = std::expm1(logit) + 2 * eps + (double(logits.size()) / 8 + 16) * eps;
  const double relative = 2 * weight + 0x1p-8;
  for (int x = 0; x < d; ++x) {
    answer.o[x] /= sum;
    answer.o_bound[x] =
        relative * absolute[x] / sum + (c.shape.o_is_float ? 0 : 0x1p-8 * std::abs(answer.o[x])) + 1e-30;
  }
  answer.lse_bound = logit + weight + 4 * eps * std::abs(answer.lse) + 1e-30;
  return answer;
}

}  // namespace backstory::cuda

#endif  // BACKSTORY_TESTS_KERNELS_CUDA_ATTEND_PROBLEM_H_
