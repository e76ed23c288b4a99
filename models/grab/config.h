// Everything grab.md section 7 leaves open, as values. Parsed from model.textproto (proto/backstory/model/v1/model.proto).
#ifndef BACKSTORY_MODELS_GRAB_CONFIG_H_
#define BACKSTORY_MODELS_GRAB_CONFIG_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "features/tokenizer_config.h"

namespace backstory::grab {

enum class Norm { kPost, kPre };

struct Config {
  std::string name;       // model name, [a-z0-9_-]{1,64}
  TokenizerConfig tokenizer;

  int d = 64;             // token width
  int heads = 4;
  int d_head = 16;
  int layers = 2;
  int latent = 0;         // MLA rank r, 0 = plain projections
  int ffn = 128;
  int n_pos = 256;        // position codebook rows
  int n_time = 64;        // log-time codebook rows: bucket = min(n_time - 1, floor(ln(max(1, dt_s)) / 0.301))
  int n_act = 16;         // action codebook rows, the last one is "self"
  int64_t window_rows = 1'000'000'000;          // attention window of a row over earlier rows, in rows
  int64_t window_sec = 1'000'000'000'000;       // and in seconds
  Norm norm = Norm::kPost;
  bool target_mixing = true;

  int embedding = 16;     // width of every embedding table row
  int gate_mlp_hidden = 128;  // GateMLP: LayerNorm(v) -> e = W2 relu(W1 v) * sigmoid(Wg v)
  int head_hidden = 64;
  std::vector<std::string> tasks{"like"};

  int channels() const { return static_cast<int>(tokenizer.channels.size()); }
};

// INVALID_ARGUMENT naming the field and the limit.
absl::Status Validate(const Config& config);

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CONFIG_H_
