// Random GRAB models, histories and candidates for the model tests, and a slow reference that shares no code with the
// model.
#ifndef BACKSTORY_TESTS_MODELS_GRAB_FIXTURE_H_
#define BACKSTORY_TESTS_MODELS_GRAB_FIXTURE_H_

#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "features/token.h"
#include "models/grab/config.h"
#include "models/grab/model.h"
#include "models/tensor_map.h"

namespace backstory::grab {

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  size_t Below(size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(engine_); }
  bool Chance(double p) { return std::bernoulli_distribution(p)(engine_); }
  float Normal(float scale = 1) { return std::normal_distribution<float>(0, scale)(engine_); }

 private:
  std::mt19937_64 engine_;
};

struct ConfigChoice {
  int channels = 2;
  int layers = 2;
  Norm norm = Norm::kPost;
  int latent = 0;
  int64_t window_rows = 1'000'000'000;
  int64_t window_sec = 1'000'000'000'000;
  bool mixing = true;
  int tasks = 1;
};

// d 12, 3 heads x 5, odd widths everywhere; passes Validate.
Config SmallConfig(const ConfigChoice& choice);

// Every tensor the configuration calls for, large enough that every term of the model shows in the logit.
TensorMap RandomTensors(const Config& config, uint64_t seed);

// `rows` history rows of one channel; a third of them in tie groups, some tie groups not adjacent.
ChannelRows RandomHistory(const Config& config, size_t rows, Random* random);
// The first `rows` of them.
ChannelRows Prefix(const ChannelRows& rows, size_t count);

CandidateTokens RandomCandidates(const Config& config, size_t count, int64_t now_us, Random* random);
// The candidates at `picks`, in that order.
CandidateTokens Pick(const CandidateTokens& candidates, std::span<const size_t> picks);

// One scored position of a packed pass.
struct Target {
  const CandidateTokens* candidates = nullptr;  // its first candidate
  int64_t now_us = 0;
  int64_t tie = -1;
};

// The packed training form in float64: all history rows and all targets in one pass over dense masks, biases gathered
// row by row. Returns logits [targets][tasks]. Written from tests/conformance/grab/README.md and docs/concepts/grab.md.
std::vector<std::vector<double>> PackedLogits(const Config& config, const TensorMap& tensors,
                                              std::span<const ChannelRows> history, std::span<const Target> targets);

// Bound on |fp32 - float64| of a logit: terms summed along one row's path, times eps, times the logits' scale. bf16:
// each operand of a product is off by up to 2^-8 of itself; the product is given sqrt(2 / 3) 2^-9 rms; five times that,
// in quadrature over the eight products of a layer, as many times as there are layers above for a history row's error
// to come through.
double LogitTolerance(const Config& config, size_t longest, double scale, Dtype precision = Dtype::kF32);

struct Scored {
  std::vector<float> logits;
  std::vector<std::vector<Attribution>> attributions;
};
// Scores one segment with all rows of `kv` visible; fails the test on an error.
Scored ScoreAll(const Model& model, const UserKv* kv, const CandidateTokens& candidates, int explain_top = 0);

std::unique_ptr<Model> MakeModel(const Config& config, const TensorMap& tensors, ThreadPool* pool,
                                 Dtype precision = Dtype::kF32);

}  // namespace backstory::grab

#endif  // BACKSTORY_TESTS_MODELS_GRAB_FIXTURE_H_
