// Attention on Hopper (sm_90a): the GPU's side of kernels/attend.h. Needs no CUDA header.
//
//   O_i = sum_j softmax_j(scale (q_i . k_j + b_ij)) v_j,   LSE_i = ln sum_j exp(...)     (self key included if given)
//
// One launch serves any number of problems (one user in one channel each) with any numbers of rows and pages. K and V
// lie in a pool of pages [page][kv head][128][d_h] bf16; a problem names its pages by id, in any order. The relative
// bias b comes by page: a page is one segment of the problem's bias table (UNIFORM), two with one boundary row (SPLIT),
// or none (FOLDED: its id names a scratch page whose K holds the bias already). TABLE pages are the CPU's: fold them.
//
// Bound: 4 M N d_h heads flop on the tensor cores, 2,048 cycles per page and tile of 128 rows at d_h 128 (half at 64),
// beside 1,024 of the exponential unit. An H100 does 558 TFLOP/s of its 989 at d_h 128 and 411 at d_h 64 with eight
// users (cuDNN 618 and 452); where the time goes: tests/bench/RESULTS.md.
//
// Numerics: bf16 inputs, fp32 logits, sums and outputs; P is rounded to bf16 for P V only, row sums take unrounded P. A
// row's bits depend on its own inputs and its problem's page list and split size alone, not on other rows, other
// problems or the machine's load, as long as the split size is not chosen by them (SplitPages).
#ifndef BACKSTORY_KERNELS_CUDA_ATTEND_H_
#define BACKSTORY_KERNELS_CUDA_ATTEND_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace backstory::cuda {

inline constexpr int kPageRows = 128;

// One page of a problem's list. Rows [0, boundary) use segment_below of the bias table, rows [boundary, valid)
// segment_above; kNoBias: no bias. K and V rows [valid, 128) of the pool page must be finite, V's zero.
struct PageEntry {
  static constexpr int16_t kNoBias = -1;
  int32_t page = 0;  // id in the pool
  int16_t segment_above = kNoBias;
  int16_t segment_below = kNoBias;
  int16_t boundary = 0;       // 0: UNIFORM or FOLDED
  int16_t valid = kPageRows;  // 1..128
  int32_t reserved = 0;
};
static_assert(sizeof(PageEntry) == 16);

// The query rows [first_row, first_row + rows) see the entries [first_page, first_page + pages) of the page list. The
// planner's view; the device sees work items only.
struct Problem {
  int64_t bias = 0;  // offset of its table [heads][segments][bias_stride] in AttendArgs::bias; a multiple of 4
  int32_t first_row = 0;
  int32_t rows = 0;
  int32_t first_page = 0;
  int32_t pages = 0;  // 0: empty history
  int32_t segments = 0;
  int32_t bias_stride = 0;                    // >= rows, a multiple of 4: one float per query row
  int32_t self_segment = PageEntry::kNoBias;  // the self key's bias
  int32_t reserved = 0;
};
static_assert(sizeof(Problem) == 40);

// What one thread block does at a time: some splits of one (problem, head, query tile). Says all that the device needs.
//
// The pages of a problem are cut into splits of split_pages; a tile's result is its splits' results merged in order,
// oldest first, whoever computed them. An item of the first splits merges them as it goes; items of later splits leave
// each split's result in the workspace. Where every item of the launch has a block of its own, a tile's items then wait
// for each other and merge a slice of the columns each; else the item that finishes last merges. So the bits depend on
// the splits alone.
struct alignas(16) WorkItem {
  int64_t bias = 0;  // of the tile's first row, segment 0
  int32_t bias_stride = 0;
  int32_t self_segment = PageEntry::kNoBias;
  int32_t row = 0;   // of all query rows
  int32_t rows = 0;  // 1..tile rows; 0: nothing to do
  int32_t head = 0;
  int32_t page_begin = 0;  // entries of the page list
  int32_t page_end = 0;
  int32_t next = 0;  // the block's next item; 0: none
  int16_t split_pages = 1;
  int16_t split_begin = 0;  // of the tile's `splits`; the item ends at split_end
  int16_t split_end = 1;
  int16_t splits = 1;
  int16_t first_splits = 1;  // splits of the tile's first item, merged into part 0
  int16_t tile_item = 0;     // which of the tile's `tile_items` this is
  int16_t tile_items = 1;
  int16_t together = 0;      // the tile's items run at the same time and may wait for each other
  int32_t first_part = 0;    // of the tile's `splits` parts in the workspace
  int32_t tile_counter = 0;  // of tiles with more than one item
};
static_assert(sizeof(WorkItem) == 64);

// The launch's schedule: block c begins with items[c] and follows `next`. The items travel to the device as they are.
struct AttendPlan {
  std::vector<WorkItem> items;
  int32_t blocks = 0;
  int32_t tile_rows = 0;
  int32_t parts = 0;          // results of splits in flight
  int32_t tile_counters = 0;  // tiles with more than one item
};

// Pages per split, a function of the page count and of what the caller keeps fixed, so that a row's bits do not depend
// on what else is in the launch. With `tiles` unknown (0): four splits, of at least four pages. Else as many as let
// `tiles` fill the blocks, since a few candidates are faster with more splits and many with one
// (tests/bench/RESULTS.md), of at most 32 pages, so that one long history does not hold up the others. At most eight
// splits are made.
int SplitPages(int pages, int tiles = 0, int blocks = 132);

struct PlanOptions {
  int heads = 1;
  int d_h = 128;
  // At most the device's multiprocessors, so that all run at once: items of a tile wait for each other. Beside other
  // launches this leans on the card dispatching all blocks of one launch before the next one's, which CUDA does not
  // promise (kernels that wait for other blocks commonly do).
  int blocks = 132;
  int split_pages = 0;  // 0: SplitPages(pages, tiles, blocks) of each problem
  int tiles = 0;  // of all heads, that launches of this kind have at least: not a matter of this launch's problems
  int item_splits = 0;  // splits per item; 0: as the load asks for. Changes no bit of the result
};
// Longest first onto the least loaded block; ties keep order, so that blocks side by side share K and V in the L2.
AttendPlan PlanAttend(std::span<const Problem> problems, const PlanOptions& options);

// Query rows of one tile, bytes of workspace a plan needs (16-byte aligned, its counters zero before the first launch;
// every launch leaves them zero).
int TileRows(int d_h);
size_t PartBytes(const AttendPlan& plan, int d_h);
size_t CounterBytes(const AttendPlan& plan, int d_h);

// All pointers are the device's. Rows are row-major with a stride in elements, a multiple of 8, base 16-byte aligned.
struct AttendArgs {
  int heads = 1;
  int kv_heads = 1;  // divides heads
  int d_h = 128;     // 64 or 128
  float scale = 1;   // > 0
  int64_t total_rows = 0;
  const void* q = nullptr;  // bf16 [total_rows][heads][d_h]
  int64_t q_stride = 0;
  const void* self_k = nullptr;  // bf16 [total_rows][kv_heads][d_h]; nullptr: no self key
  const void* self_v = nullptr;
  int64_t self_stride = 0;
  const void* k_pool = nullptr;  // bf16 [pool_pages][kv_heads][128][d_h], pages page_stride elements apart
  const void* v_pool = nullptr;
  int64_t page_stride = 0;
  int64_t pool_pages = 0;
  const float* bias = nullptr;  // 16-byte aligned; rows of a tile are read in fours
  const PageEntry* pages = nullptr;
  const WorkItem* items = nullptr;
  int blocks = 0;  // grid; a captured graph keeps it while the plan's arrays change
  // Start while the stream's previous kernel drains (programmatic dependent launch); waits for it before any read. Off
  // where the previous node of a captured graph is no kernel.
  bool overlap_previous = false;
  void* o = nullptr;  // [total_rows][heads][d_h], bf16 or fp32
  bool o_is_float = false;
  int64_t o_stride = 0;
  float* lse = nullptr;      // [total_rows][heads]; may be nullptr
  void* parts = nullptr;     // PartBytes
  void* counters = nullptr;  // CounterBytes
};

// Enqueues one launch on `stream` (a cudaStream_t). Returns nullptr, or what is wrong with the arguments or the launch;
// the text is static. Allocates nothing; safe from any thread; may be captured into a graph.
const char* Attend(const AttendArgs& args, void* stream);

}  // namespace backstory::cuda

#endif  // BACKSTORY_KERNELS_CUDA_ATTEND_H_
