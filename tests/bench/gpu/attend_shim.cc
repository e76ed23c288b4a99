// C symbols of the Hopper attention kernel for attend_bench.py: plans and launches, nothing else.
#include <cstring>

#include "kernels/cuda/attend.h"

using backstory::cuda::AttendArgs;
using backstory::cuda::AttendPlan;

extern "C" {

size_t bench_args_bytes() { return sizeof(AttendArgs); }

AttendPlan* bench_plan(const backstory::cuda::Problem* problems, int count, int heads, int d_h, int blocks,
                       int split_pages, int item_splits) {
  return new AttendPlan(backstory::cuda::PlanAttend(
      {problems, static_cast<size_t>(count)},
      {.heads = heads, .d_h = d_h, .blocks = blocks, .split_pages = split_pages, .item_splits = item_splits}));
}
void bench_plan_free(AttendPlan* plan) { delete plan; }
size_t bench_items(const AttendPlan* plan, void* to) {
  if (to != nullptr) std::memcpy(to, plan->items.data(), plan->items.size() * sizeof(plan->items[0]));
  return plan->items.size() * sizeof(plan->items[0]);
}
size_t bench_part_bytes(const AttendPlan* plan, int d_h) { return PartBytes(*plan, d_h); }
size_t bench_counter_bytes(const AttendPlan* plan, int d_h) { return CounterBytes(*plan, d_h); }
int bench_tile_rows(int d_h) { return backstory::cuda::TileRows(d_h); }

const char* bench_attend(const AttendArgs* args, void* stream) { return Attend(*args, stream); }

}  // extern "C"
