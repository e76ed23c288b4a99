// The tokenizer network: embedding rows and numbers of one token -> its row of width d. Private to models/grab.
//
//   v = concat(sum-pooled embeddings, numbers)      e = (W2 relu(W1 LN(v)) ) * sigmoid(Wg LN(v))        (+ biases)
//
// Columns may be split in two sides, of which the user side is one row shared by all tokens of a call; its part of the
// first product then runs once: LN(v) W = (v_user GW + v_item GW - mean 1GW) / std + b W, G = diag(ln.g).
#ifndef BACKSTORY_MODELS_GRAB_TOKEN_NET_H_
#define BACKSTORY_MODELS_GRAB_TOKEN_NET_H_

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "features/token.h"
#include "kernels/aligned.h"
#include "kernels/gemm.h"
#include "kernels/rowwise.h"
#include "models/grab/config.h"
#include "models/tensor_map.h"

namespace backstory::grab {

// Immutable, thread-safe. Keeps the tensor map's memory of its tables alive.
class TokenNet {
 public:
  // Of the partial view: all columns on the item side. Of the full view: split by IsUserSide. `dtype` is that of the
  // second product; the first always runs in fp32, for the norm subtracts a mean from it. History rows stay fp32
  // throughout: K/V depends on them.
  static absl::StatusOr<TokenNet> LoadPartial(const Config& config, const TensorMap& tensors);
  static absl::StatusOr<TokenNet> LoadFull(const Config& config, const TensorMap& tensors, Dtype dtype = Dtype::kF32);

  // INVALID_ARGUMENT naming the field: wrong column counts, offsets that do not fit, ids beyond the vocabulary,
  // non-finite numbers. Rows before `first` were checked before. `what` opens the message.
  absl::Status CheckItem(const TokenColumns& tokens, size_t first, const std::string& what) const {
    return Check(item_, tokens, first, what);
  }
  absl::Status CheckUser(const TokenColumns& tokens, const std::string& what) const {
    return Check(user_, tokens, 0, what);
  }

  // The user side of one token: row 0 of checked columns. Without a user side pass an empty UserPart to Run.
  struct UserPart {
    std::vector<float> product;  // [hidden + d]
    Moments moments;
  };
  UserPart RunUser(const TokenColumns& user) const;
  // Rows [first, first + rows) of checked columns -> e [rows][d].
  void Run(const UserPart& user, const TokenColumns& item, size_t first, size_t rows, float* e) const;

  size_t Bytes() const;  // tables excluded

 private:
  struct Field {
    std::string name;
    const float* table = nullptr;  // [vocab][embedding]
    uint32_t vocab = 0;
  };
  struct Side {
    std::vector<Field> sparse;
    size_t dense = 0;
    size_t width = 0;  // columns of v
    PackedMatrix w;    // [width, hidden + d]: G [W1 | Wg]
  };
  struct Columns;

  static absl::StatusOr<TokenNet> Load(const Config& config, const TensorMap& tensors, const std::string& prefix,
                                       const std::vector<SparseFieldConfig>& sparse,
                                       const std::vector<DenseFieldConfig>& dense, bool split, Dtype dtype);
  absl::Status Check(const Side& side, const TokenColumns& tokens, size_t first, const std::string& what) const;
  void Pool(const Side& side, const TokenColumns& tokens, size_t first, size_t rows, float* v) const;

  TensorMap tensors_;  // owns the tables
  size_t embedding_ = 0, hidden_ = 0, d_ = 0;
  Side user_, item_;
  std::vector<float> column_sums_;  // [hidden + d]: 1 G [W1 | Wg] over both sides
  std::vector<float> bias_;         // [hidden + d]: b [W1 | Wg] + [b1 | bg]
  std::unique_ptr<ArenaPool> arenas_ = std::make_unique<ArenaPool>();
  PackedMatrix w2_;
  std::vector<float> b2_;
};

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_TOKEN_NET_H_
