#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/attend_kernel.cuh"
#include "kernels/cuda/launch.cuh"

namespace backstory::cuda {
namespace {

template <class Shape>
const char* Launch(const AttendArgs& a, cudaStream_t stream) {
  constexpr cuuint32_t kD = Shape::kD;
  AttendMaps maps;
  const auto u = [](int64_t x) { return static_cast<cuuint64_t>(x); };
  const bool encoded = Encode<4>(&maps.q, a.q, {64, u(a.total_rows), kD / 64, u(a.heads)}, {a.q_stride, 64, kD},
                                 {64, Shape::kTileRows, kD / 64, 1}) &&
                       Encode<5>(&maps.k, a.k_pool, {64, kPageRows, kD / 64, u(a.kv_heads), u(a.pool_pages)},
                                 {kD, 64, kPageRows * kD, a.page_stride}, {64, kPageRows, kD / 64, 1, 1}) &&
                       Encode<5>(&maps.v, a.v_pool, {64, kPageRows, kD / 64, u(a.kv_heads), u(a.pool_pages)},
                                 {kD, 64, kPageRows * kD, a.page_stride}, {64, kPageRows, kD / 64, 1, 1});
  if (!encoded) return "attend: the driver refuses the tensor maps (16-byte aligned bases and strides?)";
  constexpr int kSharedBytes = sizeof(AttendShared<Shape>);
  static_assert(kSharedBytes <= 232448);
  static std::atomic<uint64_t> allowed = 0;
  const cudaError_t refused =
      Allow(AttendKernel<Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes, &allowed);
  if (refused != cudaSuccess) return cudaGetErrorString(refused);
  cudaLaunchConfig_t config = {};
  config.gridDim = a.blocks;
  config.blockDim = Shape::kThreads;
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = stream;
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &overlap;
  config.numAttrs = a.overlap_previous ? 1 : 0;
  const cudaError_t error = cudaLaunchKernelEx(&config, AttendKernel<Shape>, a, maps);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

int Multiprocessors() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  return cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess ? count : 0;
}

const char* Check(const AttendArgs& a) {
  if (a.heads < 1 || a.kv_heads < 1 || a.heads % a.kv_heads != 0) return "attend: heads is no multiple of kv_heads";
  if (!(a.scale > 0)) return "attend: scale must be > 0";
  if (a.total_rows < 1 || a.blocks < 1) return "attend: no rows or no blocks";
  if (a.blocks > Multiprocessors())
    return "attend: more blocks than multiprocessors, they could wait for each other forever";
  if (a.pool_pages < 1) return "attend: the pool has no page";
  if ((a.self_k == nullptr) != (a.self_v == nullptr)) return "attend: self_k and self_v come together";
  if (FindEncode() == nullptr) return "attend: the driver has no cuTensorMapEncodeTiled (older than CUDA 12)";
  return nullptr;
}

}  // namespace

const char* Attend(const AttendArgs& a, void* stream) {
  if (const char* wrong = Check(a)) return wrong;
  if (a.d_h == 128) return Launch<AttendShape<128, 2, 1>>(a, static_cast<cudaStream_t>(stream));
  if (a.d_h == 64) return Launch<AttendShape<64, 3, 2>>(a, static_cast<cudaStream_t>(stream));
  return "attend: d_h must be 64 or 128";
}

}  // namespace backstory::cuda
