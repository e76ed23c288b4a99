// Arrays on a card and bf16 numbers, for tests of kernels. Needs the CUDA runtime.
#ifndef BACKSTORY_TESTS_KERNELS_CUDA_ON_CARD_H_
#define BACKSTORY_TESTS_KERNELS_CUDA_ON_CARD_H_

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "tests/kernels/cuda/bf16.h"

namespace backstory::cuda {

inline void Ok(cudaError_t error) { ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error); }

// A copy of an array on the card, freed with the object.
template <typename T>
class OnCard {
 public:
  explicit OnCard(const std::vector<T>& from) : size_(from.size()) {
    Ok(cudaMalloc(&data_, std::max<size_t>(1, size_) * sizeof(T)));
    Ok(cudaMemcpy(data_, from.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  OnCard(const OnCard&) = delete;
  OnCard& operator=(const OnCard&) = delete;
  ~OnCard() { cudaFree(data_); }
  T* data() const { return data_; }
  size_t size() const { return size_; }
  std::vector<T> Read() const {
    std::vector<T> now(size_);
    Ok(cudaMemcpy(now.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return now;
  }

 private:
  size_t size_;
  T* data_ = nullptr;
};

}  // namespace backstory::cuda

#endif  // BACKSTORY_TESTS_KERNELS_CUDA_ON_CARD_H_
