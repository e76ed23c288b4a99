// GRAB (arXiv 2602.01865) as served: history rows become cached K/V once, candidates are scored against it.
// Start here in models/grab. The algebra is in docs/concepts/grab.md; tests/conformance/grab pins every convention.
#ifndef BACKSTORY_MODELS_GRAB_MODEL_H_
#define BACKSTORY_MODELS_GRAB_MODEL_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "features/token.h"
#include "kernels/dtype.h"
#include "kernels/thread_pool.h"
#include "models/grab/config.h"
#include "models/tensor_map.h"

namespace backstory::grab {

// All channels of one user under one model: K/V of every layer in pages of 128 rows (kernels/page.h). Rows are
// append-only: row i depends on rows <= i alone. Rows [0, closed) of a channel are final as long as no event at or
// before them changes; Truncate drops rows from the end, Extend appends. Not thread-safe for writing; concurrent Score
// calls may share it. A state belongs to models with the state_id of the one that made it; giving it to another is a
// bug of the caller.
class UserKv {
 public:
  virtual ~UserKv() = default;
  virtual size_t Rows(int channel) const = 0;
  virtual size_t Bytes() const = 0;
  virtual void Truncate(int channel, size_t rows) = 0;
};

// One explained history row of one candidate: attention mass averaged over heads of the last layer, self excluded.
struct Attribution {
  int channel = 0;
  uint32_t row = 0;
  uint64_t event_id = 0;
  float mass = 0;
};

// One request's candidates against one user's state; several segments of one call share the GEMMs.
struct ScoreSegment {
  const UserKv* kv = nullptr;            // may be null: empty history
  std::span<const size_t> visible_rows;  // [channels]: rows [0, n) are candidates' history (as_of, history length)
  std::span<const size_t> first_row;     // [channels] or empty: rows before it are not attended (history length)
  const CandidateTokens* candidates = nullptr;
  // Output.
  float* logits = nullptr;                                        // [candidates, tasks]
  int explain_top = 0;                                            // > 0: fill attributions
  std::vector<std::vector<Attribution>>* attributions = nullptr;  // [candidates][<= explain_top per channel]
};

// Immutable after Load, thread-safe. On a CPU every result is bit-identical whatever the batch, the thread count, and
// whether rows were appended one by one or prefilled (per machine target); what a card promises: cuda/model.h.
class Model {
 public:
  virtual ~Model() = default;
  virtual const Config& config() const = 0;
  // Hash of every tensor and setting that K/V depends on (hex, 16 digits): versions that share it share user state.
  virtual const std::string& state_id() const = 0;
  virtual size_t parameter_bytes() const = 0;
  // Whether Extend takes a whole history within milliseconds; if not, a server extends in steps and does other work
  // between.
  virtual bool ExtendsAtOnce() const { return false; }
  // Calls of Score that are worth having in flight, further ones only wait; 0: as many as there are callers. A model
  // with lanes gains from many requests in one call, and takes a request's candidates in one piece.
  virtual int lanes() const { return 0; }

  virtual std::unique_ptr<UserKv> NewState() const = 0;
  // Appends rows [kv->Rows(c), tokens[c].time_us.size()) of every channel. Rows before must be those already appended.
  virtual absl::Status Extend(std::span<const ChannelRows> tokens, UserKv* kv) const = 0;
  virtual absl::Status Score(std::span<const ScoreSegment> segments) const = 0;
};

// Weights by the names of models/grab/tensors.h; further tensors are ignored. NOT_FOUND or INVALID_ARGUMENT naming the
// tensor or the setting. Embedding tables stay in the memory of `tensors` (which the model keeps alive), the rest is
// packed for the kernels. `pool` may be null (work runs in the calling thread) and must outlive the model.
// `precision` is what K/V, the layers' matrices, the last of the candidates' tokens and the first of the head are
// stored in and multiplied as (kernels/dtype.h); embeddings, norms, gates, softmax and logits are fp32 in either. It
// enters state_id.
absl::StatusOr<std::unique_ptr<Model>> CreateModel(const Config& config, const TensorMap& tensors, ThreadPool* pool,
                                                   Dtype precision = Dtype::kF32);

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_MODEL_H_
