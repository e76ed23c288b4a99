// A fixed-size, 64-byte aligned array: what kernels read and write.
#ifndef BACKSTORY_KERNELS_ALIGNED_H_
#define BACKSTORY_KERNELS_ALIGNED_H_

#include <cassert>
#include <cstddef>
#include <cstring>
#include <memory>
#include <mutex>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/large_pages.h"

namespace backstory {

// Of plain values. Move-only. Not thread-safe for writing.
template <typename T>
class AlignedArray {
  static_assert(std::is_trivial_v<T>);

 public:
  AlignedArray() = default;
  explicit AlignedArray(size_t size) : AlignedArray(size, kUninitialised) {
    if (size > 0) std::memset(data_.get(), 0, size * sizeof(T));
  }
  enum Uninitialised { kUninitialised };
  AlignedArray(size_t size, Uninitialised) : size_(size) {
    if (size > 0) data_ = {static_cast<T*>(AllocateAligned(size * sizeof(T))), Free{size * sizeof(T)}};
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
    size_t bytes = 0;
    void operator()(T* p) const { FreeAligned(p, bytes); }
  };
  std::unique_ptr<T[], Free> data_;
  size_t size_ = 0;
};

using AlignedFloats = AlignedArray<float>;

// Memory that arenas of finished tasks leave to the next ones, so that a busy server does not ask the allocator for
// megabytes with every request. Keeps as many pieces as arenas were ever alive at once. Thread-safe.
class ArenaPool {
 public:
  // At least `floats`, uninitialised.
  AlignedFloats Take(size_t floats) {
    AlignedFloats memory;
    {
      std::lock_guard lock(mutex_);
      if (!free_.empty()) {
        memory = std::move(free_.back());
        free_.pop_back();
      }
    }
    return memory.size() >= floats ? std::move(memory) : AlignedFloats(floats, AlignedFloats::kUninitialised);
  }
  void Give(AlignedFloats memory) {
    std::lock_guard lock(mutex_);
    free_.push_back(std::move(memory));
  }

 private:
  std::mutex mutex_;
  std::vector<AlignedFloats> free_;  // guarded by mutex_
};

// One piece of memory handed out in 64-byte aligned, uninitialised pieces; made once per task, never grows.
class Arena {
 public:
  // `pool` outlives the arena.
  Arena(size_t floats, ArenaPool* pool) : pool_(pool), memory_(pool->Take(floats)) {}
  ~Arena() { pool_->Give(std::move(memory_)); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  static constexpr size_t Padded(size_t floats) { return (floats + 15) / 16 * 16; }
  float* Take(size_t floats) {
    assert(used_ + Padded(floats) <= memory_.size());
    float* piece = memory_.data() + used_;
    used_ += Padded(floats);
    return piece;
  }

 private:
  ArenaPool* pool_;
  AlignedFloats memory_;
  size_t used_ = 0;
};

}  // namespace backstory

#endif  // BACKSTORY_KERNELS_ALIGNED_H_
