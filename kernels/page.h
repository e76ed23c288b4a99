// The K/V page: 128 rows of one layer of one channel, the unit of caching, summarising and attention.
//
// CPU layouts, chosen so that both products of attention run the GEMM micro-kernel on contiguous 16-column panels:
//   fp32  K [kv_heads][128 / 16][d_k][16]               column panels of K^T: K^T[dim][row] at panel row / 16
//         V [kv_heads][ceil(d_v / 16)][128][16]         column panels of V
//   bf16  K [kv_heads][128 / 16][ceil(d_k / 2)][16][2]  the same panels, dims 2i and 2i + 1 of a row side by side
//         V [kv_heads][ceil(d_v / 16)][128 / 2][16][2]  rows 2i and 2i + 1 of a column side by side
// Rows at and beyond a page's valid count are zero in both, columns of V beyond d_v and dims of K beyond d_k too.
// Host and disk tiers keep rows row-major; ReadRow and WriteRow convert.
#ifndef BACKSTORY_KERNELS_PAGE_H_
#define BACKSTORY_KERNELS_PAGE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/aligned.h"
#include "kernels/dtype.h"

namespace backstory {

inline constexpr size_t kPageRows = 128;
inline constexpr size_t kPanel = 16;  // columns of one packed panel, of pages and of packed matrices

struct PageShape {
  size_t kv_heads = 1;
  size_t d_k = 0;
  size_t d_v = 0;
  Dtype dtype = Dtype::kF32;

  size_t v_panels() const { return (d_v + kPanel - 1) / kPanel; }
  // Elements, of 4 or 2 bytes.
  size_t k_depth() const { return dtype == Dtype::kF32 ? d_k : PairPadded(d_k); }
  size_t k_head_size() const { return kPageRows * k_depth(); }
  size_t v_head_size() const { return v_panels() * kPageRows * kPanel; }
  size_t k_size() const { return kv_heads * k_head_size(); }
  size_t v_size() const { return kv_heads * v_head_size(); }
  size_t element_bytes() const { return dtype == Dtype::kF32 ? sizeof(float) : sizeof(Bf16); }
  size_t bytes() const { return (k_size() + v_size()) * element_bytes(); }
  size_t KIndex(size_t head, size_t row, size_t dim) const {
    const size_t panel = head * k_head_size() + row / kPanel * k_depth() * kPanel;
    return panel + (dtype == Dtype::kF32 ? dim * kPanel + row % kPanel : PairIndex(dim, row % kPanel));
  }
  size_t VIndex(size_t head, size_t row, size_t dim) const {
    const size_t panel = head * v_head_size() + dim / kPanel * kPageRows * kPanel;
    return panel + (dtype == Dtype::kF32 ? row * kPanel + dim % kPanel : PairIndex(row, dim % kPanel));
  }
  bool operator==(const PageShape&) const = default;

 private:
  static size_t PairIndex(size_t summed, size_t column) { return (summed / 2 * kPanel + column) * 2 + summed % 2; }
};

// A page that somebody else owns: elements of its shape's dtype, 64-byte aligned.
struct PageView {
  const void* k = nullptr;
  const void* v = nullptr;
};

// One page with its memory: K then V.
class Page {
 public:
  explicit Page(const PageShape& shape) : memory_(shape.bytes()), k_bytes_(shape.k_size() * shape.element_bytes()) {}
  void* k() { return memory_.data(); }
  void* v() { return memory_.data() + k_bytes_; }
  PageView view() const { return {memory_.data(), memory_.data() + k_bytes_}; }
  size_t bytes() const { return memory_.size(); }

 private:
  AlignedArray<std::byte> memory_;
  size_t k_bytes_;
};

// k [kv_heads][d_k], v [kv_heads][d_v], row-major; row < 128. A bf16 page rounds what is written.
void WriteRow(const PageShape& shape, size_t row, const float* k, const float* v, Page* page);
void ReadRow(const PageShape& shape, size_t row, const PageView& page, float* k, float* v);
// Zeroes rows [first, 128).
void ClearRows(const PageShape& shape, size_t first, Page* page);

// Compacts a row list into scratch pages: row i of `out` (page i / 128) becomes row rows[i] of `pages`.
void GatherRows(const PageShape& shape, std::span<const PageView> pages, std::span<const uint32_t> rows,
                std::span<Page> out);

// What page selection and inspection know of a page without touching its rows.
struct PageSummary {
  uint32_t count = 0;             // valid rows
  std::vector<float> mean_k;      // [kv_heads * d_k]
  std::vector<float> min_k;       // [kv_heads * d_k]
  std::vector<float> max_k;       // [kv_heads * d_k]
  std::vector<float> mean_v;      // [kv_heads * d_v]
  std::vector<uint16_t> actions;  // histogram by action id
  std::vector<uint16_t> sids;     // histogram by first semantic-id code; empty where the model has none
  int64_t first_time_us = 0;
  int64_t last_time_us = 0;
  float log_weight = 0;  // ln of the summed row weights; ln(count) where rows carry none
};

// Row facts are of the page's rows, oldest first, all of one length <= 128. `sids` and `log_w` may be empty.
struct PageRowFacts {
  std::span<const int64_t> time_us;
  std::span<const int32_t> actions;
  std::span<const uint32_t> sids;
  std::span<const float> log_w;
  size_t action_classes = 0;
  size_t sid_codes = 0;
};
PageSummary SummarisePage(const PageShape& shape, const PageView& page, const PageRowFacts& rows);

}  // namespace backstory

#endif  // BACKSTORY_KERNELS_PAGE_H_
