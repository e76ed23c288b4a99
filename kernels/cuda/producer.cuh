// The producer thread: feeds Q, K, V, and what belongs to them, to shared memory with the tensor copy engine.
#ifndef BACKSTORY_KERNELS_CUDA_PRODUCER_CUH_
#define BACKSTORY_KERNELS_CUDA_PRODUCER_CUH_

#include "kernels/cuda/attend.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/shared.cuh"

namespace backstory::cuda {

// Everything a consumer needs comes through shared memory: the work item with Q, a page's entry and biases with K.
template <class Shape>
__device__ __forceinline__ void Produce(const AttendArgs& a, const AttendMaps& maps, AttendShared<Shape>& shared) {
  const AttendBarriers<Shape> barriers(shared);
  Ring<Shape::kStages> ring;
  Ring<Shape::kQStages> q;
  Ring<Shape::kItems> slot;
  for (int i = blockIdx.x;; q.Next(), slot.Next()) {
    barriers.QEmpty(q.stage).Wait(q.phase ^ 1);
    const WorkItem& item = shared.item[slot.stage];
    shared.item[slot.stage] = a.items[i];
    const int head = item.head, kv_head = head / (a.heads / a.kv_heads), page_end = item.page_end;
    int page = item.page_begin;
    if (page == page_end) {
      barriers.QFull(q.stage).Arrive();
    } else {
      barriers.QFull(q.stage).ArriveExpecting(Shape::kQBytes);
      LoadBox4(&maps.q, barriers.QFull(q.stage), shared.q[q.stage], 0, item.row, 0, head);
    }
    PageEntry next;
    if (page < page_end) next = a.pages[page];
    while (page < page_end) {
      const PageEntry entry = next;
      if (++page < page_end) next = a.pages[page];
      const BarrierAt full = barriers.KFull(ring.stage);
      barriers.KEmpty(ring.stage).Wait(ring.phase ^ 1);
      const bool above = entry.segment_above >= 0, below = entry.boundary > 0 && entry.segment_below >= 0;
      shared.notes[ring.stage] = make_int4(entry.boundary, entry.valid, above, below);
      const uint32_t bias_bytes = (item.rows + 3) / 4 * 16;
      full.ArriveExpecting(Shape::kPageBytes + (above ? bias_bytes : 0) + (below ? bias_bytes : 0));
      LoadBox5(&maps.k, full, shared.k[ring.stage], 0, 0, 0, kv_head, entry.page);
      const float* const table = a.bias + item.bias;
      const int64_t stride = item.bias_stride;
      if (above) LoadBytes(full, shared.bias[ring.stage][0], table + entry.segment_above * stride, bias_bytes);
      if (below) LoadBytes(full, shared.bias[ring.stage][1], table + entry.segment_below * stride, bias_bytes);
      barriers.VEmpty(ring.stage).Wait(ring.phase ^ 1);
      barriers.VFull(ring.stage).ArriveExpecting(Shape::kPageBytes);
      LoadBox5(&maps.v, barriers.VFull(ring.stage), shared.v[ring.stage], 0, 0, 0, kv_head, entry.page);
      ring.Next();
    }
    i = item.next;
    if (i == 0) return;
  }
}

}  // namespace backstory::cuda

#endif  // BACKSTORY_KERNELS_CUDA_PRODUCER_CUH_
