#include "models/glass/cuda/model.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "models/glass/cuda/lane.h"
#include "models/glass/cuda/weights.h"

namespace backstory::glass {
namespace {

class Card final : public CudaGlass {
 public:
  Card(const Config& config, const CudaGlassOptions& options, std::shared_ptr<grab::CudaDevice> device)
      : config_(config), options_(options), device_(std::move(device)) {}

  absl::Status Load(const TensorMap& tensors) {
    auto weights =
        cuda::UploadWeights(config_, tensors, options_.precision == CudaPrecision::kFp32 ? 3 : 1, device_.get());
    if (!weights.ok()) return weights.status();
    weights_ = *std::move(weights);
    for (int i = 0; i < options_.lanes; ++i) {
      auto lane = cuda::Lane::Create(config_, weights_->model, {options_.users_max, options_.rows_max}, device_);
      if (!lane.ok()) return lane.status();
      lane_bytes_ += (*lane)->bytes();
      idle_.push_back(*std::move(lane));
    }
    return absl::OkStatus();
  }

  absl::Status Search(std::span<const CudaGlassRequest> requests, std::span<CudaGlassReply> replies) const override {
    for (size_t i = 0; i < requests.size(); ++i) {
      if (absl::Status status = CheckRequest(requests[i], i); !status.ok()) return status;
    }
    if (requests.empty()) return absl::OkStatus();
    std::unique_ptr<cuda::Lane> lane = Take();
    absl::Status status;
    for (size_t first = 0; first < requests.size() && status.ok();) {
      size_t count = 0, rows = 0;
      while (first + count < requests.size() && count < options_.users_max) {
        rows += (requests[first + count].beam + 31) / 32 * 32;
        if (count > 0 && rows > options_.rows_max) break;
        ++count;
      }
      status = lane->Run(requests.subspan(first, count), replies.subspan(first, count));
      first += count;
    }
    Give(std::move(lane));
    return status;
  }

  size_t bytes() const override { return weights_->memory.bytes() + lane_bytes_; }

 private:
  absl::Status CheckRequest(const CudaGlassRequest& request, size_t i) const {
    const auto wrong = [i](const std::string& what) {
      return absl::InvalidArgumentError(absl::StrCat("request ", i, ": ", what));
    };
    if (request.beam < 1 || request.beam > options_.beam_max) {
      return wrong(absl::StrCat("field beam is ", request.beam, ", must be 1..", options_.beam_max));
    }
    if (request.mode == SearchMode::kValid && request.trie == nullptr) return wrong("field trie is missing");
    const CudaUser* user = request.user;
    if (user == nullptr) return wrong("field user is missing");
    const size_t codes = static_cast<size_t>(config_.levels[0]);
    if (user->short_tokens.size() > kLevels * static_cast<size_t>(config_.short_items)) {
      return wrong(absl::StrCat("field short_tokens has ", user->short_tokens.size(), " tokens, must be at most ",
                                kLevels * static_cast<size_t>(config_.short_items)));
    }
    for (const uint32_t token : user->short_tokens) {
      if (token >= static_cast<uint32_t>(config_.vocabulary)) {
        return wrong(absl::StrCat("field short_tokens holds ", token, ", must be below ", config_.vocabulary));
      }
    }
    if (user->tier.size() != codes * config_.bins()) {
      return wrong(absl::StrCat("field tier has ", user->tier.size(), " numbers, must be ", codes * config_.bins()));
    }
    if (config_.retrieved_items > 0 &&
        (user->begin.size() != codes + 1 || user->begin.back() != user->members.size())) {
      return wrong(absl::StrCat("field begin has ", user->begin.size(), " entries, must be ", codes + 1,
                                " that end at the number of members"));
    }
    return absl::OkStatus();
  }

  std::unique_ptr<cuda::Lane> Take() const {
    std::unique_lock lock(mutex_);
    free_.wait(lock, [this] { return !idle_.empty(); });
    std::unique_ptr<cuda::Lane> lane = std::move(idle_.back());
    idle_.pop_back();
    return lane;
  }
  void Give(std::unique_ptr<cuda::Lane> lane) const {
    {
      std::lock_guard lock(mutex_);
      idle_.push_back(std::move(lane));
    }
    free_.notify_one();
  }

  const Config config_;
  const CudaGlassOptions options_;
  const std::shared_ptr<grab::CudaDevice> device_;
  std::unique_ptr<cuda::CardWeights> weights_;
  size_t lane_bytes_ = 0;
  mutable std::mutex mutex_;
  mutable std::condition_variable free_;
  mutable std::vector<std::unique_ptr<cuda::Lane>> idle_;  // guarded by mutex_
};

absl::Status CheckOptions(const CudaGlassOptions& o) {
  const auto wrong = [](const char* field, size_t value, const std::string& rule) {
    return absl::InvalidArgumentError(absl::StrCat("option ", field, " is ", value, ", must be ", rule));
  };
  if (o.beam_max < 1 || o.beam_max > 1024) return wrong("beam_max", o.beam_max, "1..1024");
  if (o.users_max < 1 || o.users_max > 4096) return wrong("users_max", o.users_max, "1..4096");
  if (o.rows_max < o.beam_max || o.rows_max > 1 << 20) return wrong("rows_max", o.rows_max, "beam_max..1048576");
  if (o.lanes < 1 || o.lanes > 64) return wrong("lanes", static_cast<size_t>(o.lanes), "1..64");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<const CudaTrie>> CudaTrie::Create(const Trie& trie,
                                                                 std::shared_ptr<grab::CudaDevice> device) {
  std::array<std::vector<uint16_t>, kLevels> codes;
  std::array<std::vector<uint32_t>, kLevels - 1> begin;
  const Trie::Children roots = trie.Next(0, 0);
  codes[0].assign(roots.codes.begin(), roots.codes.end());
  for (size_t level = 1; level < kLevels; ++level) {
    begin[level - 1].push_back(0);
    for (uint32_t node = 0; node < codes[level - 1].size(); ++node) {
      const Trie::Children next = trie.Next(level, node);
      codes[level].insert(codes[level].end(), next.codes.begin(), next.codes.end());
      begin[level - 1].push_back(static_cast<uint32_t>(codes[level].size()));
    }
  }
  size_t bytes = 0;
  const auto aligned = [](size_t size) { return (size + 255) / 256 * 256; };
  for (const auto& c : codes) bytes += aligned(c.size() * sizeof(c[0]));
  for (const auto& b : begin) bytes += aligned(b.size() * sizeof(b[0]));
  auto on_card = std::make_shared<cuda::TrieOnCard>();
  auto memory = device->Allocate(bytes, "a catalogue's trie");
  if (!memory.ok()) return memory.status();
  on_card->memory = *std::move(memory);
  on_card->arrays.roots = static_cast<uint32_t>(codes[0].size());
  size_t at = 0;
  absl::Status status;
  const auto copy = [&](const auto& values, auto* to) {
    const size_t size = values.size() * sizeof(values[0]);
    void* there = on_card->memory.as<char>(at);
    if (status.ok() && size > 0) {
      status = device->Check(cudaMemcpy(there, values.data(), size, cudaMemcpyHostToDevice), "copying a trie");
    }
    *to = static_cast<std::remove_pointer_t<decltype(to)>>(there);
    at += aligned(size);
  };
  for (size_t level = 0; level < kLevels; ++level) copy(codes[level], &on_card->arrays.codes[level]);
  for (size_t level = 0; level + 1 < kLevels; ++level) copy(begin[level], &on_card->arrays.begin[level]);
  if (!status.ok()) return status;
  return std::shared_ptr<const CudaTrie>(std::move(on_card));
}

absl::StatusOr<std::unique_ptr<const CudaGlass>> CudaGlass::Create(const Config& config, const TensorMap& tensors,
                                                                   std::shared_ptr<grab::CudaDevice> device,
                                                                   const CudaGlassOptions& options) {
  if (absl::Status status = CheckOptions(options); !status.ok()) return status;
  if (absl::Status status = device->Select(); !status.ok()) return status;
  auto card = std::make_unique<Card>(config, options, std::move(device));
  if (absl::Status status = card->Load(tensors); !status.ok()) return status;
  return std::unique_ptr<const CudaGlass>(std::move(card));
}

}  // namespace backstory::glass
