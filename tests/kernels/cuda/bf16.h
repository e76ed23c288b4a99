// bf16 for tests, apart from kernels/dtype.h, whose rounding they check. Needs no CUDA.
#ifndef BACKSTORY_TESTS_KERNELS_CUDA_BF16_H_
#define BACKSTORY_TESTS_KERNELS_CUDA_BF16_H_

#include <bit>
#include <cstdint>

namespace backstory::cuda {

// Rounds to nearest even, as the hardware does.
inline uint16_t ToBf16(double x) {
  const uint32_t bits = std::bit_cast<uint32_t>(static_cast<float>(x));
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float FromBf16(uint16_t x) { return std::bit_cast<float>(static_cast<uint32_t>(x) << 16); }

}  // namespace backstory::cuda

#endif  // BACKSTORY_TESTS_KERNELS_CUDA_BF16_H_
