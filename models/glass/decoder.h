// One decode in progress: up to three positions of many beams of one user, with K/V of the earlier ones.
#ifndef BACKSTORY_MODELS_GLASS_DECODER_H_
#define BACKSTORY_MODELS_GLASS_DECODER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "kernels/aligned.h"
#include "kernels/thread_pool.h"
#include "models/glass/network.h"

namespace backstory::glass {

// What a decode works in. Several megabytes: a busy server must not ask the system for them with every request, so the
// next decode of the network takes over what one leaves (never its contents). Internal to Decoder.
struct DecoderScratch {
  struct Group {
    size_t begin, end;  // of order
    const RetrievedSet* set;
  };
  // Neighbouring beams that one thread decodes, and its scratch. `padded` >= `rows`: products run over rows that mean
  // nothing where that is faster than a ragged tile.
  struct Part {
    size_t first = 0, rows = 0, padded = 0;
    AlignedFloats x, z;       // [padded][d]
    AlignedFloats near, far;  // [padded][d]: output of the memory and the retrieved branch
    AlignedFloats gate_in;    // [padded][2 d]
    AlignedFloats gate;       // [padded][d]
    AlignedFloats q, o, kv;   // [padded][inner], [padded][inner], [padded][2 inner]
    // Retrieved sets over few token pages: all beams attend to the union of the pages, each through its own row of
    // ln(count)
    // (-inf for what its set lacks), so that they share the tiles of a product. Else: set by set, beams of one
    // together.
    std::vector<uint32_t> union_pages;  // empty: set by set
    AlignedFloats bias;                 // [padded][heads][bias_stride]
    size_t bias_stride = 0;
    AlignedFloats sorted_q, sorted_o;  // [padded][inner], beams of one set together
    AlignedFloats lse;                 // [padded][heads]
    AlignedFloats hidden;              // [padded][ffn]
    AlignedFloats logits;              // [padded][vocabulary]
    AlignedFloats workspace;
    std::vector<uint32_t> order;
    std::vector<Group> groups;
    std::vector<PageView> views;
    std::vector<const float*> log_w;
  };
  AlignedFloats self_kv;  // [layer][position][beams_max][2 inner]: key, then value
  AlignedFloats follow;   // [beams_max][2 inner]
  std::vector<Part> parts;
  size_t bytes() const;
};

// Thread-safe. Keeps as many as were ever in use at once, but none that a very wide search has made large.
class DecoderScratchPool {
 public:
  std::unique_ptr<DecoderScratch> Take();
  void Give(std::unique_ptr<DecoderScratch> scratch);

 private:
  static constexpr size_t kKeptBytesMax = size_t{8} << 20;
  std::mutex mutex_;
  std::vector<std::unique_ptr<DecoderScratch>> free_;  // guarded by mutex_
};

// Not thread-safe; network, memory and pool must outlive it. The bits of
// a beam do not depend on the beams beside it, nor on threads.
class Decoder {
 public:
  // `pool` may be null. Beams are dealt out to its threads.
  Decoder(const Network* network, const Memory* memory, size_t beams_max, ThreadPool* pool = nullptr);
  ~Decoder();
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  size_t position() const { return position_; }  // the next one, 0..2

  // Runs one position: tokens [beams] stand at it. retrieved [beams]: what each beam's first code retrieved; beams that
  // share one share a pointer; not read at position 0. logits [beams][vocabulary] of what follows.
  // gate_sum, if not null: [beams], each layer's mean gate is added.
  void Step(std::span<const uint32_t> tokens, std::span<const RetrievedSet* const> retrieved, float* logits,
            double* gate_sum = nullptr);
  // After Step: how the search's attention of the last layer was spread for beam `w`, whose set is `set`: mean over
  // heads, [set.members], sums to 1. Zeros for an empty set. For explanations.
  std::vector<float> SearchAttention(size_t w, const RetrievedSet& set) const;
  // Beam w of the next position goes on from beam parents[w] of the last one.
  void Follow(std::span<const uint32_t> parents);

 private:
  using Part = DecoderScratch::Part;
  using Group = DecoderScratch::Group;
  void Deal(size_t beams);
  void Allocate(Part* part, size_t rows) const;
  void Run(Part* part, std::span<const uint32_t> tokens, std::span<const RetrievedSet* const> retrieved, float* logits,
           double* gate_sum);
  void SelfAttention(const DecoderLayer& layer, size_t index, Part* part);
  void Cross(const DecoderLayer& layer, size_t index, Part* part, double* gate_sum) const;
  void AttendMemory(size_t index, Part* part) const;
  void AttendRetrieved(size_t index, Part* part) const;
  void PrepareSets(std::span<const RetrievedSet* const> retrieved, Part* part) const;
  void FillBias(Part* part) const;
  void AttendUnion(size_t index, Part* part) const;
  float* Keys(size_t layer, size_t position) {
    return scratch_->self_kv.data() + (layer * kLevels + position) * beams_max_ * 2 * network_->inner_;
  }

  const Network* network_;
  const Memory* memory_;
  const size_t beams_max_;
  ThreadPool* const pool_;
  size_t position_ = 0;
  std::unique_ptr<DecoderScratch> scratch_;
  size_t used_parts_ = 0;  // of the last Step
};

}  // namespace backstory::glass

#endif  // BACKSTORY_MODELS_GLASS_DECODER_H_
