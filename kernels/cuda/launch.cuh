// What launching the kernels of this folder takes on the host: tensor maps, shared memory, launch attributes.
#ifndef BACKSTORY_KERNELS_CUDA_LAUNCH_CUH_
#define BACKSTORY_KERNELS_CUDA_LAUNCH_CUH_

#include <cuda.h>
#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>

namespace backstory::cuda {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// The driver's function, found at run time, so that nothing links against the driver.
inline EncodeTiled FindEncode() {
  static const EncodeTiled found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result) !=
            cudaSuccess ||
        result != cudaDriverEntryPointSuccess) {
      function = nullptr;
    }
    return reinterpret_cast<EncodeTiled>(function);
  }();
  return found;
}

// A bf16 or fp32 tensor cut into boxes of 128 bytes x `rows` x all column blocks, swizzled by 128 bytes. Strides in
// elements, of dimensions 1 and up.
template <int kRank>
bool Encode(CUtensorMap* map, const void* base, const cuuint64_t (&sizes)[kRank], const int64_t (&strides)[kRank - 1],
            const cuuint32_t (&box)[kRank], bool is_float = false) {
  cuuint64_t bytes[kRank - 1];
  cuuint32_t steps[kRank];
  for (int i = 0; i < kRank; ++i) steps[i] = 1;
  for (int i = 0; i + 1 < kRank; ++i) bytes[i] = static_cast<cuuint64_t>(strides[i]) * (is_float ? 4 : 2);
  return FindEncode()(map, is_float ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, kRank,
                      const_cast<void*>(base), sizes, bytes, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

// Sets an attribute of a kernel on the current device: once per device is enough.
template <typename Kernel>
cudaError_t Allow(Kernel kernel, cudaFuncAttribute attribute, int value, std::atomic<uint64_t>* done) {
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
  if (done->load(std::memory_order_relaxed) & bit) return cudaSuccess;
  const cudaError_t error = cudaFuncSetAttribute(kernel, attribute, value);
  if (error == cudaSuccess) done->fetch_or(bit, std::memory_order_relaxed);
  return error;
}

}  // namespace backstory::cuda

#endif  // BACKSTORY_KERNELS_CUDA_LAUNCH_CUH_
