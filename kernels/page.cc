#include "kernels/page.h"

#include <algorithm>
#include <cassert>
#include <cmath>

namespace backstory {

namespace {

void Store(float value, float* to) { *to = value; }
void Store(float value, Bf16* to) { *to = ToBf16(value); }
float Load(const float* from) { return *from; }
float Load(const Bf16* from) { return FromBf16(*from); }

template <typename T>
void WriteRowAs(const PageShape& shape, size_t row, const float* k, const float* v, Page* page) {
  T* k_page = static_cast<T*>(page->k());
  T* v_page = static_cast<T*>(page->v());
  for (size_t h = 0; h < shape.kv_heads; ++h) {
    for (size_t i = 0; i < shape.d_k; ++i) Store(k[h * shape.d_k + i], k_page + shape.KIndex(h, row, i));
    for (size_t i = 0; i < shape.d_v; ++i) Store(v[h * shape.d_v + i], v_page + shape.VIndex(h, row, i));
  }
}

template <typename T>
void ReadRowAs(const PageShape& shape, size_t row, const PageView& page, float* k, float* v) {
  const T* k_page = static_cast<const T*>(page.k);
  const T* v_page = static_cast<const T*>(page.v);
  for (size_t h = 0; h < shape.kv_heads; ++h) {
    for (size_t i = 0; i < shape.d_k; ++i) k[h * shape.d_k + i] = Load(k_page + shape.KIndex(h, row, i));
    for (size_t i = 0; i < shape.d_v; ++i) v[h * shape.d_v + i] = Load(v_page + shape.VIndex(h, row, i));
  }
}

}  // namespace

void WriteRow(const PageShape& shape, size_t row, const float* k, const float* v, Page* page) {
  assert(row < kPageRows && page->bytes() == shape.bytes());
  if (shape.dtype == Dtype::kF32) return WriteRowAs<float>(shape, row, k, v, page);
  WriteRowAs<Bf16>(shape, row, k, v, page);
}

void ReadRow(const PageShape& shape, size_t row, const PageView& page, float* k, float* v) {
  assert(row < kPageRows);
  if (shape.dtype == Dtype::kF32) return ReadRowAs<float>(shape, row, page, k, v);
  ReadRowAs<Bf16>(shape, row, page, k, v);
}

void ClearRows(const PageShape& shape, size_t first, Page* page) {
  const std::vector<float> zero(shape.kv_heads * std::max(shape.d_k, shape.d_v), 0.0f);
  for (size_t row = first; row < kPageRows; ++row) WriteRow(shape, row, zero.data(), zero.data(), page);
}

void GatherRows(const PageShape& shape, std::span<const PageView> pages, std::span<const uint32_t> rows,
                std::span<Page> out) {
  assert(out.size() * kPageRows >= rows.size());
  std::vector<float> k(shape.kv_heads * shape.d_k), v(shape.kv_heads * shape.d_v);
  for (size_t i = 0; i < rows.size(); ++i) {
    ReadRow(shape, rows[i] % kPageRows, pages[rows[i] / kPageRows], k.data(), v.data());
    WriteRow(shape, i % kPageRows, k.data(), v.data(), &out[i / kPageRows]);
  }
}

PageSummary SummarisePage(const PageShape& shape, const PageView& page, const PageRowFacts& rows) {
  const size_t count = rows.time_us.size();
  assert(count <= kPageRows && rows.actions.size() == count);
  const size_t k_width = shape.kv_heads * shape.d_k, v_width = shape.kv_heads * shape.d_v;
  PageSummary s;
  s.count = static_cast<uint32_t>(count);
  s.mean_k.assign(k_width, 0);
  s.min_k.assign(k_width, 0);
  s.max_k.assign(k_width, 0);
  s.mean_v.assign(v_width, 0);
  s.actions.assign(rows.action_classes, 0);
  s.sids.assign(rows.sids.empty() ? 0 : rows.sid_codes, 0);
  s.log_weight = -INFINITY;
  if (count == 0) return s;
  s.first_time_us = rows.time_us.front();
  s.last_time_us = rows.time_us.back();
  std::vector<double> sum_k(k_width, 0), sum_v(v_width, 0);
  std::vector<float> k(k_width), v(v_width);
  double weight = 0;
  for (size_t r = 0; r < count; ++r) {
    ReadRow(shape, r, page, k.data(), v.data());
    for (size_t i = 0; i < k_width; ++i) {
      sum_k[i] += k[i];
      s.min_k[i] = r == 0 ? k[i] : std::min(s.min_k[i], k[i]);
      s.max_k[i] = r == 0 ? k[i] : std::max(s.max_k[i], k[i]);
    }
    for (size_t i = 0; i < v_width; ++i) sum_v[i] += v[i];
    ++s.actions[static_cast<size_t>(rows.actions[r])];
    if (!s.sids.empty()) ++s.sids[rows.sids[r]];
    weight += rows.log_w.empty() ? 1.0 : std::exp(static_cast<double>(rows.log_w[r]));
  }
  for (size_t i = 0; i < k_width; ++i) s.mean_k[i] = static_cast<float>(sum_k[i] / static_cast<double>(count));
  for (size_t i = 0; i < v_width; ++i) s.mean_v[i] = static_cast<float>(sum_v[i] / static_cast<double>(count));
  s.log_weight = static_cast<float>(std::log(weight));
  return s;
}

}  // namespace backstory
