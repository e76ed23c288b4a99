// A card and its memory, without a CUDA header: what models/grab/cuda allocates and how it learns that a card is lost.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_DEVICE_H_
#define BACKSTORY_MODELS_GRAB_CUDA_DEVICE_H_

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace backstory::grab {

// Memory on the card, or page-locked memory that the card can read and write. Freed with the object.
class CudaBuffer {
 public:
  enum class Place { kCard, kPinned };

  CudaBuffer() = default;
  CudaBuffer(CudaBuffer&& other) noexcept { *this = std::move(other); }
  CudaBuffer& operator=(CudaBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(on_card_, other.on_card_);
    std::swap(bytes_, other.bytes_);
    std::swap(place_, other.place_);
    return *this;
  }
  ~CudaBuffer();

  size_t bytes() const { return bytes_; }
  void* data() const { return data_; }
  // Pinned memory by the address the card knows it by.
  void* on_card() const { return on_card_; }
  template <typename T>
  T* as(size_t byte = 0) const {
    return reinterpret_cast<T*>(static_cast<char*>(data_) + byte);
  }

 private:
  friend class CudaDevice;
  void* data_ = nullptr;
  void* on_card_ = nullptr;
  size_t bytes_ = 0;
  Place place_ = Place::kCard;
};

// Why CUDA (`error` of counting cards, a cudaError_t) cannot be used, for operators. `driver` and `runtime` as
// cudaDriverGetVersion and cudaRuntimeGetVersion give them; driver 0: there is none.
std::string WhyNoCuda(int error, int driver, int runtime);

// Thread-safe. Lives as long as anything on the card.
class CudaDevice {
 public:
  // FAILED_PRECONDITION naming what was found: no driver, no such card, not a Hopper (compute capability 9.0).
  static absl::StatusOr<std::shared_ptr<CudaDevice>> Open(int ordinal);

  int ordinal() const { return ordinal_; }
  const std::string& name() const { return name_; }
  int multiprocessors() const { return multiprocessors_; }
  size_t total_bytes() const { return total_bytes_; }

  // Of the calling thread, before it uses the card.
  absl::Status Select() const;
  // RESOURCE_EXHAUSTED saying for what, how much, and how much is free. The card stays usable.
  absl::StatusOr<CudaBuffer> Allocate(size_t bytes, const std::string& what,
                                      CudaBuffer::Place place = CudaBuffer::Place::kCard);
  size_t FreeBytes() const;

  // `code` is a cudaError_t. Out of memory: RESOURCE_EXHAUSTED. Anything else means that the card's context, and what
  // it computed, cannot be trusted any more: UNAVAILABLE, now and in every later call.
  absl::Status Check(int code, const char* what);
  // As Check, for a static text of a kernel (nullptr: fine).
  absl::Status CheckText(const char* error, const char* what);
  // OK, or why the card was given up.
  absl::Status health() const;
  // Called once, when the card is given up.
  void OnLost(std::function<void(const absl::Status&)> callback);

  // Faults for tests: the n-th allocation from now fails (1: the next), and the next Check sees `code`.
  void FailAllocation(int n) { fail_allocation_ = n; }
  void InjectError(int code) { injected_error_ = code; }

 private:
  CudaDevice() = default;
  absl::Status Lose(const std::string& why);

  int ordinal_ = 0;
  std::string name_;
  int multiprocessors_ = 0;
  size_t total_bytes_ = 0;
  std::atomic<int> fail_allocation_{0};
  std::atomic<int> injected_error_{0};
  std::atomic<bool> lost_{false};
  mutable std::mutex mutex_;
  absl::Status why_lost_;                             // guarded by mutex_
  std::function<void(const absl::Status&)> on_lost_;  // guarded by mutex_
};

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_DEVICE_H_
