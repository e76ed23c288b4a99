// Bounds-checked little-endian reading and writing of the store's own encodings.
#ifndef BACKSTORY_STORE_BYTE_IO_H_
#define BACKSTORY_STORE_BYTE_IO_H_

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace backstory {

inline uint64_t ZigZag(int64_t v) { return (static_cast<uint64_t>(v) << 1) ^ static_cast<uint64_t>(v >> 63); }
inline int64_t UnZigZag(uint64_t v) { return static_cast<int64_t>(v >> 1) ^ -static_cast<int64_t>(v & 1); }

inline size_t VarintSize(uint64_t v) {
  size_t n = 1;
  while (v >= 0x80) {
    v >>= 7;
    ++n;
  }
  return n;
}

inline void PutVarint(std::string* out, uint64_t v) {
  char buffer[10];
  size_t n = 0;
  while (v >= 0x80) {
    buffer[n++] = static_cast<char>(v | 0x80);
    v >>= 7;
  }
  buffer[n++] = static_cast<char>(v);
  out->append(buffer, n);
}

inline void PutFixed64(std::string* out, uint64_t v) { out->append(reinterpret_cast<const char*>(&v), sizeof(v)); }
inline void PutFixed32(std::string* out, uint32_t v) { out->append(reinterpret_cast<const char*>(&v), sizeof(v)); }

inline void PutBytes(std::string* out, std::string_view bytes) {
  PutVarint(out, bytes.size());
  out->append(bytes);
}

// Big-endian, so that keys sort as numbers.
inline void PutBig(std::string* out, uint64_t v, int bytes) {
  for (int i = bytes - 1; i >= 0; --i) out->push_back(static_cast<char>(v >> (8 * i)));
}
inline uint64_t GetBig(const char* p, int bytes) {
  uint64_t v = 0;
  for (int i = 0; i < bytes; ++i) v = v << 8 | static_cast<uint8_t>(p[i]);
  return v;
}

// Every Read* returns false, and leaves the reader failed for good, where the input is too short or malformed.
class ByteReader {
 public:
  explicit ByteReader(std::string_view bytes) : p_(bytes.data()), end_(bytes.data() + bytes.size()) {}

  bool ok() const { return ok_; }
  size_t remaining() const { return static_cast<size_t>(end_ - p_); }
  const char* position() const { return p_; }

  bool ReadVarint(uint64_t* v) {
    uint64_t result = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (p_ == end_) return Fail();
      const auto byte = static_cast<uint8_t>(*p_++);
      if (shift == 63 && byte > 1) return Fail();
      result |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) {
        *v = result;
        return true;
      }
    }
    return Fail();
  }
  bool ReadFixed64(uint64_t* v) { return ReadRaw(v, sizeof(*v)); }
  bool ReadFixed32(uint32_t* v) { return ReadRaw(v, sizeof(*v)); }
  bool ReadByte(uint8_t* v) { return ReadRaw(v, 1); }
  bool ReadBytes(std::string_view* v) {
    uint64_t size = 0;
    if (!ReadVarint(&size) || size > remaining()) return Fail();
    *v = {p_, static_cast<size_t>(size)};
    p_ += size;
    return true;
  }
  bool Skip(size_t bytes) {
    if (bytes > remaining()) return Fail();
    p_ += bytes;
    return true;
  }
  bool Fail() {
    ok_ = false;
    p_ = end_;
    return false;
  }

 private:
  bool ReadRaw(void* v, size_t bytes) {
    if (bytes > remaining()) return Fail();
    std::memcpy(v, p_, bytes);
    p_ += bytes;
    return true;
  }

  const char* p_;
  const char* end_;
  bool ok_ = true;
};

}  // namespace backstory

#endif  // BACKSTORY_STORE_BYTE_IO_H_
