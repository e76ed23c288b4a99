// A fixed-size, 64-byte aligned array: what kernels read and write.
#ifndef BACKSTORY_KERNELS_ALIGNED_H_
#define BACKSTORY_KERNELS_ALIGNED_H_

#include <cassert>
#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>

namespace backstory {

// Of plain values. Move-only. Not thread-safe for writing.
template <typename T>
class AlignedArray {
  static_assert(std::is_trivial_v<T>);

 public:
  static constexpr std::align_val_t kAlignment{64};

  AlignedArray() = default;
  explicit AlignedArray(size_t size) : AlignedArray(size, kUninitialised) {
    if (size > 0) std::memset(data_.get(), 0, size * sizeof(T));
  }
  enum Uninitialised { kUninitialised };
  AlignedArray(size_t size, Uninitialised) : size_(size) {
    if (size > 0) data_.reset(static_cast<T*>(::operator new[](size * sizeof(T), kAlignment)));
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  size_t size() const { return size_; }
  T& operator[](size_t i) {
    assert(i < size_);
    return data_.get()[i];
  }
  const T& operator[](size_t i) const {
    assert(i < size_);
    return data_.get()[i];
  }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete[](p, kAlignment); }
  };
  std::unique_ptr<T[], Free> data_;
  size_t size_ = 0;
};

using AlignedFloats = AlignedArray<float>;

// One allocation handed out in 64-byte aligned, uninitialised pieces; made once per task, never grows.
class Arena {
 public:
  explicit Arena(size_t floats) : memory_(floats, AlignedFloats::kUninitialised) {}
  static constexpr size_t Padded(size_t floats) { return (floats + 15) / 16 * 16; }
  float* Take(size_t floats) {
    assert(used_ + Padded(floats) <= memory_.size());
    float* piece = memory_.data() + used_;
    used_ += Padded(floats);
    return piece;
  }

 private:
  AlignedFloats memory_;
  size_t used_ = 0;
};

}  // namespace backstory

#endif  // BACKSTORY_KERNELS_ALIGNED_H_
