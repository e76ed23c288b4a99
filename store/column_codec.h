// One column of unsigned 64-bit numbers, stored in the smallest of a few encodings. The history codec is built from it.
#ifndef BACKSTORY_STORE_COLUMN_CODEC_H_
#define BACKSTORY_STORE_COLUMN_CODEC_H_

#include <cstdint>
#include <span>
#include <string>

#include "store/byte_io.h"

namespace backstory {

// First byte of a column. Persisted: values never change meaning.
enum class ColumnMode : uint8_t {
  kConstant = 0,  // varint value
  kPacked = 1,  // varint minimum, width byte w <= 56, then rows x w bits of (value - minimum), little-endian bit order
  kAscending = 2,   // non-decreasing: scale byte (0, 1, 2: 1, 10^3, 10^6), varint first / scale, varint steps / scale
  kDelta = 3,       // varint first, zigzag varint differences modulo 2^64
  kRaw = 4,         // rows x 8 bytes
  kDictionary = 5,  // varint n <= 64, n varint values, width byte, then rows x width bits of indices
};

void EncodeColumn(std::span<const uint64_t> values, std::string* out);

// Reads values.size() numbers; false if malformed.
bool DecodeColumn(ByteReader* reader, std::span<uint64_t> values);

}  // namespace backstory

#endif  // BACKSTORY_STORE_COLUMN_CODEC_H_
