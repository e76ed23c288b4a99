// What K/V pages and packed weights are stored in.
#ifndef BACKSTORY_KERNELS_DTYPE_H_
#define BACKSTORY_KERNELS_DTYPE_H_

#include <bit>
#include <cstddef>
#include <cstdint>

namespace backstory {

// kBf16 stores 16-bit values two by two along the axis a product sums over ("pairs"), as VDPBF16PS reads them, and is
// zero-padded to whole pairs. Products are exact, sums are fp32.
enum class Dtype : uint8_t { kF32, kBf16 };

// The upper half of a float: 8 significant bits, relative rounding error <= 2^-8.
using Bf16 = uint16_t;

inline float FromBf16(Bf16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x) << 16); }

// To nearest, ties to even, as every target rounds: beyond the largest value to infinity, denormals to (signed) zero.
inline Bf16 ToBf16(float x) {
  uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude < 0x00800000u) return static_cast<Bf16>((bits & 0x80000000u) >> 16);
  if (magnitude > 0x7f800000u) return static_cast<Bf16>((bits >> 16) | 0x40u);  // stays a NaN
  bits += 0x7fffu + ((bits >> 16) & 1u);
  return static_cast<Bf16>(bits >> 16);
}

inline float RoundToBf16(float x) { return FromBf16(ToBf16(x)); }

// Values of one axis once whole pairs are stored.
constexpr size_t PairPadded(size_t n) { return (n + 1) / 2 * 2; }

}  // namespace backstory

#endif  // BACKSTORY_KERNELS_DTYPE_H_
