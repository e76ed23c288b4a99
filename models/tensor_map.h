// The tensors of one model version by name. Forward passes ask for what they need with the shape they expect; they
// never learn whether a tensor was mapped from a file, widened from bf16, or made by a test.
#ifndef BACKSTORY_MODELS_TENSOR_MAP_H_
#define BACKSTORY_MODELS_TENSOR_MAP_H_

#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace backstory {

// [2, 3] in messages; [] is a scalar.
std::string ShapeText(std::span<const int64_t> shape);

// Row-major fp32. `data` is aligned to 4 bytes only (a mapped file gives no more) and lives as long as the TensorMap,
// or any copy of it, that handed it out.
struct TensorView {
  std::vector<int64_t> shape;
  const float* data = nullptr;
  size_t size = 0;  // product of the shape, 1 for a scalar
  std::span<const float> values() const { return {data, size}; }
};

// Copies share the memory. Thread-safe for reading once filled.
class TensorMap {
 public:
  // INVALID_ARGUMENT naming the tensor: a name that is already there, a negative dimension, or values that do not fill
  // the shape.
  absl::Status Add(std::string name, std::vector<int64_t> shape, std::vector<float> values);
  // The same for memory of someone else, kept alive by `data` itself (an aliasing shared_ptr on a mapped file).
  absl::Status AddShared(std::string name, std::vector<int64_t> shape, std::shared_ptr<const float> data, size_t size);

  // NOT_FOUND naming the tensor; INVALID_ARGUMENT naming tensor, expected and found shape.
  absl::StatusOr<TensorView> Get(std::string_view name, std::span<const int64_t> shape) const;
  absl::StatusOr<TensorView> Get(std::string_view name, std::initializer_list<int64_t> shape) const {
    return Get(name, std::span<const int64_t>(shape.begin(), shape.size()));
  }

  // nullptr if absent. Valid until the map is changed.
  const TensorView* Find(std::string_view name) const;
  bool Contains(std::string_view name) const { return Find(name) != nullptr; }

  std::vector<std::string> Names() const;  // sorted
  size_t size() const { return tensors_.size(); }
  size_t ParameterCount() const;

 private:
  struct Entry {
    TensorView view;
    std::shared_ptr<const float> owner;
  };
  std::map<std::string, Entry, std::less<>> tensors_;
};

}  // namespace backstory

#endif  // BACKSTORY_MODELS_TENSOR_MAP_H_
