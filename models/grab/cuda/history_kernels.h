// History rows becoming K/V on the card: attention of rows among themselves, and writing K/V into the pool. Pointers
// are the card's; needs no CUDA header. Each call enqueues launches and returns nullptr or a static text of what
// failed.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_HISTORY_KERNELS_H_
#define BACKSTORY_MODELS_GRAB_CUDA_HISTORY_KERNELS_H_

#include <cstddef>
#include <cstdint>

namespace backstory::grab {

inline constexpr int kCudaHistoryChannels = 16;
inline constexpr int kCudaHistoryTimes = 104;     // time buckets: no age in microseconds reaches bucket 100
inline constexpr int kCudaHistoryCodedPages = 8;  // the newest that a tile of 128 rows sees
inline constexpr int kCudaFewRows = 4;            // of every channel at most, for append.h

// Which keys j < i a row i does not see: those before `oldest`, and those with its tie key, all of which are in
// [tie_first, tie_last] (-1: none).
struct alignas(16) CudaHistoryLimits {
  int32_t oldest = 0, tie_first = -1, tie_last = -1, unused = 0;
};

// Rows [first, first + rows) of one channel.
struct CudaHistoryRows {
  int first = 0, rows = 0;
  const int32_t* blocks = nullptr;        // [page] -> block of the pool
  const int64_t* time_us = nullptr;       // [first + rows]
  const int64_t* tie = nullptr;           // [first + rows], as all facts below; tied rows and rows with a tie are read
  const int32_t* previous_tie = nullptr;  // RowIndex::previous_tie
  const int32_t* oldest_tie = nullptr;    // the oldest row before i with the tie key of i, or -1
  const int32_t* action = nullptr;
  const float* bact = nullptr;  // [n_act][d_h]
  // From row `first` on, with room for a multiple of 128 rows.
  CudaHistoryLimits* limits = nullptr;  // [rows]
  int32_t* bucket_begin = nullptr;      // [rows][n_time]: the oldest key in that time bucket or a younger one
  void* codes = nullptr;  // of pairs with the newest pages: [rows / 128][kCudaHistoryCodedPages][128][128] bytes
};

struct CudaHistoryArgs {
  int channels = 0, heads = 0, d_h = 0;  // d_h 64 or 128
  int layer = 0, layers = 0;
  int n_pos = 0, n_time = 0, table_width = 0;  // n_time at most kCudaHistoryTimes, whatever the table's is
  float scale = 1;
  int64_t window_rows = 0, window_us = 0;
  const int64_t* edges = nullptr;  // [n_time]: TimeBuckets::edge
  int64_t chunk_rows = 0;          // rows between channels of what follows, a multiple of 128
  const void* qkv = nullptr;       // bf16 [channels][chunk_rows][q, k, v][heads][d_h]
  const float* table = nullptr;    // [channels][chunk_rows][heads][table_width]: q . Bpos[p], then q . Btime[t]
  void* o = nullptr;               // bf16 [channels][chunk_rows][heads][d_h]
  int splits = 1;                  // of the pages of a tile of 128 rows and head, side by side: 1 or CudaHistorySplits
  float* parts = nullptr;          // of kCudaHistoryParts splits
  void* pool = nullptr;            // blocks [layer][K, V][head][128][d_h] bf16
  int64_t pool_blocks = 0;
  CudaHistoryRows channel[kCudaHistoryChannels];
};

// How many splits fill the card where there are few tiles; a function of the rows alone.
int CudaHistorySplits(const CudaHistoryArgs& args);
inline constexpr int kCudaHistoryParts = 128;
constexpr size_t CudaHistoryPartBytes(int d_h) {
  return size_t{kCudaHistoryParts} * 128 * (static_cast<size_t>(d_h) + 2) * 4;
}

// Writes limits, bucket_begin and codes of the rows: once, for all layers.
const char* CudaHistoryFacts(const CudaHistoryArgs& args, void* stream);

// Row i attends to rows j < i of other tie groups inside both windows and to itself (key_runs.h, HistoryRuns): bf16
// products, fp32 softmax. All rows up to the last one have their K/V in the pool.
const char* CudaHistoryAttend(const CudaHistoryArgs& args, void* stream);

// K (with the action's bias) and V of the rows into their pages; zeroes behind the last row of the last page.
const char* CudaWriteKv(const CudaHistoryArgs& args, void* stream);

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_HISTORY_KERNELS_H_
