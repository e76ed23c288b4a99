// One decode in progress: up to three positions of many beams of one user, with K/V of the earlier ones.
#ifndef BACKSTORY_MODELS_GLASS_DECODER_H_
#define BACKSTORY_MODELS_GLASS_DECODER_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/aligned.h"
#include "models/glass/network.h"

namespace backstory::glass {

// Not thread-safe; network and memory must outlive it. Memory is allocated once, for beams_max beams. The bits of a beam
// do not depend on the beams beside it.
class Decoder {
 public:
  Decoder(const Network* network, const Memory* memory, size_t beams_max);

  size_t position() const { return position_; }  // the next one, 0..2

  // Runs one position: tokens [beams] stand at it. retrieved [beams]: what each beam's first code retrieved; beams that
  // share one share a pointer; not read at position 0. logits [beams][vocabulary] of what follows.
  // gate_sum, if not null: [beams], each layer's mean gate is added.
  void Step(std::span<const uint32_t> tokens, std::span<const RetrievedSet* const> retrieved, float* logits,
            double* gate_sum = nullptr);
  // After Step: how the search's attention of the last layer was spread for beam `w`, whose set is `set`: mean over heads,
  // [set.members], sums to 1. Zeros for an empty set. For explanations.
  std::vector<float> SearchAttention(size_t w, const RetrievedSet& set) const;
  // Beam w of the next position goes on from beam parents[w] of the last one.
  void Follow(std::span<const uint32_t> parents);

 private:
  struct Group {
    size_t begin, end;  // of order_
    const RetrievedSet* set;
  };
  void SelfAttention(const DecoderLayer& layer, size_t index, size_t beams);
  void Cross(const DecoderLayer& layer, size_t index, size_t beams, double* gate_sum);
  void AttendMemory(size_t index, size_t beams);
  void AttendRetrieved(size_t index, size_t beams);
  void GroupBySet(std::span<const RetrievedSet* const> retrieved);
  float* Keys(size_t layer, size_t position) {
    return self_kv_.data() + (layer * kLevels + position) * beams_max_ * 2 * network_->inner_;
  }

  const Network* network_;
  const Memory* memory_;
  const size_t beams_max_;
  size_t position_ = 0;
  AlignedFloats self_kv_;   // [layer][position][beam][2 inner]: key, then value
  AlignedFloats follow_;    // [beam][2 inner]
  AlignedFloats x_, z_;     // [beam][d]
  AlignedFloats near_, far_;  // [beam][d]: output of the memory and the retrieved branch
  AlignedFloats gate_in_;   // [beam][2 d]
  AlignedFloats gate_;      // [beam][d]
  AlignedFloats q_, o_;     // [beam][inner]
  AlignedFloats sorted_q_, sorted_o_;  // [beam][inner], beams of one set together
  AlignedFloats lse_;       // [beam][heads]
  AlignedFloats hidden_;    // [beam][ffn]
  AlignedFloats workspace_;
  std::vector<uint32_t> order_;
  std::vector<Group> groups_;
  std::vector<PageView> views_;
  std::vector<const float*> log_w_;
};

}  // namespace backstory::glass

#endif  // BACKSTORY_MODELS_GLASS_DECODER_H_
