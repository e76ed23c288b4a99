#include "models/glass/beam_search.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <deque>
#include <map>

#include "models/glass/decoder.h"

namespace backstory::glass {
namespace {

struct Candidate {
  float score;
  uint32_t parent;
  uint32_t token;
  uint32_t node;
};

bool Better(const Candidate& a, const Candidate& b) {
  if (a.score != b.score) return a.score > b.score;
  return a.parent != b.parent ? a.parent < b.parent : a.token < b.token;
}

// Keeps the best `width` of what is offered, in memory of twice that.
class Best {
 public:
  explicit Best(size_t width) : width_(width) { kept_.reserve(2 * width); }
  void Offer(const Candidate& candidate) {
    if (full_ && !Better(candidate, worst_)) return;
    kept_.push_back(candidate);
    if (kept_.size() == 2 * width_) Shrink();
  }
  std::vector<Candidate> Take() {
    std::sort(kept_.begin(), kept_.end(), Better);
    if (kept_.size() > width_) kept_.resize(width_);
    return std::move(kept_);
  }

 private:
  void Shrink() {
    std::nth_element(kept_.begin(), kept_.begin() + static_cast<ptrdiff_t>(width_ - 1), kept_.end(), Better);
    kept_.resize(width_);
    worst_ = kept_.back();
    full_ = true;
  }
  size_t width_;
  std::vector<Candidate> kept_;
  Candidate worst_{};
  bool full_ = false;
};

// ln of the sum of exp, over a row of logits.
float LogSumExp(const float* logits, size_t n) {
  float top = logits[0];
  for (size_t i = 1; i < n; ++i) top = std::max(top, logits[i]);
  float lanes[8] = {};
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (size_t lane = 0; lane < 8; ++lane) lanes[lane] += std::exp(logits[i + lane] - top);
  }
  double sum = 0;
  for (; i < n; ++i) sum += std::exp(logits[i] - top);
  for (const float lane : lanes) sum += lane;
  return static_cast<float>(top + std::log(sum));
}

// What a token adds to the score of its beam. `total`: LogSumExp of its row of logits.
float TokenScore(const Config& config, size_t step, float logit, float total) {
  const float score = logit - total;
  if (step > 0 || config.first_step_epsilon <= 0) return score;
  return static_cast<float>(std::log(std::exp(static_cast<double>(score)) + config.first_step_epsilon));
}

// The sets that beams retrieve, each made once.
class Sets {
 public:
  Sets(const Network& network, const BucketTokens& buckets) : network_(network), buckets_(buckets) {}
  // A token outside level 1 reads the nearest bucket, as in the public code.
  const RetrievedSet* Of(uint32_t first_token) {
    const Config& config = network_.config();
    if (config.retrieved_items == 0) return nullptr;
    const int64_t code =
        std::clamp<int64_t>(static_cast<int64_t>(first_token) - config.offset(0), 0, config.levels[0] - 1);
    const auto [found, added] = by_code_.try_emplace(static_cast<uint16_t>(code), nullptr);
    if (added) {
      sets_.push_back(network_.Retrieve(buckets_(static_cast<uint16_t>(code))));
      found->second = &sets_.back();
    }
    return found->second;
  }

 private:
  const Network& network_;
  const BucketTokens& buckets_;
  std::map<uint16_t, const RetrievedSet*> by_code_;
  std::deque<RetrievedSet> sets_;  // stable addresses
};

class Searching {
 public:
  Searching(const Network& network, const BucketTokens& buckets, const SearchOptions& options)
      : network_(network), config_(network.config()), sets_(network, buckets), options_(options) {
    assert(options.mode != SearchMode::kValid || options.trie != nullptr);
  }

  std::vector<Beam> Run(const Memory& memory) {
    Decoder decoder(&network_, &memory, options_.beam, options_.pool);
    std::vector<float> logits(options_.beam * static_cast<size_t>(config_.vocabulary));
    std::vector<Beam> beams(1);
    std::vector<uint32_t> tokens(1, config_.bos()), parents;
    std::vector<const RetrievedSet*> sets;
    for (size_t step = 0; step < kLevels; ++step) {
      const bool explained = step + 1 == kLevels && options_.steering != nullptr;
      std::vector<double> gates(explained ? tokens.size() : 0);
      decoder.Step(tokens, sets, logits.data(), explained ? gates.data() : nullptr);
      const std::vector<Candidate> best = Extend(step, beams, logits.data());
      std::vector<Beam> next(best.size());
      parents.resize(best.size());
      for (size_t i = 0; i < best.size(); ++i) {
        next[i] = beams[best[i].parent];
        next[i].tokens[step] = best[i].token;
        next[i].score = best[i].score;
        next[i].node = best[i].node;
        parents[i] = best[i].parent;
      }
      beams = std::move(next);
      if (explained) Explain(decoder, sets, gates, parents);
      if (options_.steps != nullptr) (*options_.steps)[step] = beams;
      if (step + 1 == kLevels || beams.empty()) break;
      decoder.Follow(parents);
      tokens.resize(beams.size());
      sets.resize(beams.size());
      for (size_t i = 0; i < beams.size(); ++i) {
        tokens[i] = beams[i].tokens[step];
        sets[i] = sets_.Of(beams[i].tokens[0]);
      }
    }
    return beams;
  }

 private:
  std::vector<Candidate> Extend(size_t step, const std::vector<Beam>& beams, const float* logits) const {
    const size_t vocabulary = static_cast<size_t>(config_.vocabulary);
    const uint32_t begin = config_.offset(step);
    Best best(options_.beam);
    for (size_t w = 0; w < beams.size(); ++w) {
      const float* row = logits + w * vocabulary;
      const float total = LogSumExp(row, vocabulary);
      const auto offer = [&](uint32_t token, uint32_t node) {
        float score = TokenScore(config_, step, row[token], total) + beams[w].score;
        if (std::isnan(score))
          score = -INFINITY;  // an order needs numbers; who asked sees that the score is not finite
        best.Offer({score, static_cast<uint32_t>(w), token, node});
      };
      if (options_.mode == SearchMode::kValid) {
        const Trie::Children next = options_.trie->Next(step, beams[w].node);
        for (size_t i = 0; i < next.codes.size(); ++i)
          offer(begin + next.codes[i], next.first + static_cast<uint32_t>(i));
      } else {
        const bool level = options_.mode == SearchMode::kLevel;
        const uint32_t end =
            level ? begin + static_cast<uint32_t>(config_.levels[step]) : static_cast<uint32_t>(vocabulary);
        for (uint32_t token = level ? begin : 0; token < end; ++token) offer(token, 0);
      }
    }
    return best.Take();
  }

  void Explain(const Decoder& decoder, const std::vector<const RetrievedSet*>& sets, const std::vector<double>& gates,
               const std::vector<uint32_t>& parents) const {
    options_.steering->resize(parents.size());
    for (size_t i = 0; i < parents.size(); ++i) {
      const RetrievedSet* set = sets[parents[i]];
      if (set == nullptr) continue;
      Steering& steering = (*options_.steering)[i];
      steering.tokens = set->members;
      steering.mass = decoder.SearchAttention(parents[i], *set);
      steering.gate = static_cast<float>(gates[parents[i]] / config_.decoder_layers);
    }
  }

  const Network& network_;
  const Config& config_;
  Sets sets_;
  const SearchOptions& options_;
};

}  // namespace

Memory Encode(const Network& network, const History& history, ThreadPool* pool) {
  const Config& config = network.config();
  std::vector<float> tiers(static_cast<size_t>(config.levels[0]) * config.bins());
  history.TierFeatures(tiers.data());
  return network.Encode(history.ShortTokens(), tiers.data(), pool);
}

BucketTokens BucketsOf(const Catalogue& catalogue, const History& history) {
  return [&catalogue, &history](uint16_t code) {
    std::vector<uint32_t> tokens;
    for (const Behaviour& behaviour : history.Bucket(code)) {
      for (const uint32_t token : catalogue.Tokens(behaviour.row)) tokens.push_back(token);
    }
    return tokens;
  };
}

std::vector<Beam> Search(const Network& network, const Memory& memory, const BucketTokens& buckets,
                         const SearchOptions& options) {
  assert(options.beam >= 1);
  return Searching(network, buckets, options).Run(memory);
}

std::vector<float> ScoresOf(const Network& network, const Memory& memory, const BucketTokens& buckets,
                            std::span<const Beam> beams) {
  if (beams.empty()) return {};
  const Config& config = network.config();
  const size_t vocabulary = static_cast<size_t>(config.vocabulary);
  Decoder decoder(&network, &memory, beams.size());
  Sets all(network, buckets);
  std::vector<float> logits(beams.size() * vocabulary), scores(beams.size());
  std::vector<uint32_t> tokens(1, config.bos()), parents(beams.size());  // all go on from the one first row
  std::vector<const RetrievedSet*> sets;
  for (size_t step = 0; step < kLevels; ++step) {
    decoder.Step(tokens, sets, logits.data());
    for (size_t b = 0; b < beams.size(); ++b) {
      const float* row = logits.data() + (step == 0 ? 0 : b) * vocabulary;
      scores[b] += TokenScore(config, step, row[beams[b].tokens[step]], LogSumExp(row, vocabulary));
    }
    if (step + 1 == kLevels) break;
    decoder.Follow(parents);
    tokens.resize(beams.size());
    sets.resize(beams.size());
    for (size_t b = 0; b < beams.size(); ++b) {
      tokens[b] = beams[b].tokens[step];
      sets[b] = all.Of(beams[b].tokens[0]);
      parents[b] = static_cast<uint32_t>(b);
    }
  }
  return scores;
}

std::vector<RecommendedItem> ItemsOf(const Catalogue& catalogue, std::span<const Beam> beams,
                                     const RecommendOptions& options) {
  std::vector<RecommendedItem> items;
  for (size_t b = 0; b < beams.size(); ++b) {
    size_t of_sid = 0;
    for (const uint32_t row : catalogue.Items(beams[b].node)) {
      if (items.size() == options.count) return items;
      if (of_sid == options.per_sid_max && options.beyond_per_sid == nullptr) break;
      if (options.keep && !options.keep(row)) continue;
      if (of_sid == options.per_sid_max) {
        ++*options.beyond_per_sid;
        continue;
      }
      items.push_back({row, b});
      ++of_sid;
    }
  }
  return items;
}

}  // namespace backstory::glass
