#include "models/tensor_map.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace backstory {
namespace {

// Nothing if a dimension is negative or the product exceeds what can be addressed.
std::optional<size_t> ElementCount(std::span<const int64_t> shape) {
  size_t count = 1;
  for (int64_t dim : shape) {
    if (dim < 0 || __builtin_mul_overflow(count, static_cast<size_t>(dim), &count)) return std::nullopt;
  }
  return count;
}

}  // namespace

std::string ShapeText(std::span<const int64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape.begin(), shape.end(), ", "), "]");
}

absl::Status TensorMap::Add(std::string name, std::vector<int64_t> shape, std::vector<float> values) {
  auto owner = std::make_shared<std::vector<float>>(std::move(values));
  const size_t size = owner->size();
  std::shared_ptr<const float> data(owner, owner->data());
  return AddShared(std::move(name), std::move(shape), std::move(data), size);
}

absl::Status TensorMap::AddShared(std::string name, std::vector<int64_t> shape, std::shared_ptr<const float> data,
                                  size_t size) {
  if (ElementCount(shape) != size) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", name, ": shape ", ShapeText(shape), " does not hold ", size, " values"));
  }
  if (tensors_.contains(name)) return absl::InvalidArgumentError(absl::StrCat("tensor ", name, ": added twice"));
  TensorView view{std::move(shape), data.get(), size};
  tensors_.emplace(std::move(name), Entry{std::move(view), std::move(data)});
  return absl::OkStatus();
}

absl::StatusOr<TensorView> TensorMap::Get(std::string_view name, std::span<const int64_t> shape) const {
  const TensorView* view = Find(name);
  if (view == nullptr) {
    return absl::NotFoundError(
        absl::StrCat("tensor ", std::string(name), ": missing, expected shape ", ShapeText(shape)));
  }
  if (!std::equal(shape.begin(), shape.end(), view->shape.begin(), view->shape.end())) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", std::string(name), ": expected shape ", ShapeText(shape),
                                                   ", found ", ShapeText(view->shape)));
  }
  return *view;
}

const TensorView* TensorMap::Find(std::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second.view;
}

std::vector<std::string> TensorMap::Names() const {
  std::vector<std::string> names;
  names.reserve(tensors_.size());
  for (const auto& [name, entry] : tensors_) names.push_back(name);
  return names;
}

size_t TensorMap::ParameterCount() const {
  size_t count = 0;
  for (const auto& [name, entry] : tensors_) count += entry.view.size;
  return count;
}

}  // namespace backstory
