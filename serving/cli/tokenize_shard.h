// Users -> one token shard, the only thing trainers read (docs/reference/token-shards.md).
#ifndef BACKSTORY_SERVING_CLI_TOKENIZE_SHARD_H_
#define BACKSTORY_SERVING_CLI_TOKENIZE_SHARD_H_

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "features/tokenizer.h"
#include "models/golden.h"
#include "serving/cli/tokenize_corpus.h"

namespace backstory {

struct ShardCounts {
  uint64_t users = 0, rows = 0, targets = 0, positives = 0;  // rows: of the joined histories
};

// Tokenises `users` of the corpus point-in-time (`as_of`) and writes the shard atomically. Same input, same bytes.
absl::StatusOr<ShardCounts> WriteTokenShard(const Corpus& corpus, std::span<const UserEvents> users, AsOf as_of,
                                            const TokenizerConfig& config, const std::string& path,
                                            const std::map<std::string, std::string>& metadata);

// The tokens of golden cases, each under the name prefix "case<i>.", for whoever computes their logits.
absl::Status WriteCaseTokens(std::span<const GoldenCase> cases, const TokenizerConfig& config, const std::string& path,
                             const std::map<std::string, std::string>& metadata);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_TOKENIZE_SHARD_H_
