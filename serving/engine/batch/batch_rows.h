// A table of rows to score, as columns, and its scores. Views only: whoever fills a BatchRows keeps the memory alive.
// The layout is Arrow's, so that an Arrow array is described without copying its numbers.
#ifndef BACKSTORY_SERVING_ENGINE_BATCH_BATCH_ROWS_H_
#define BACKSTORY_SERVING_ENGINE_BATCH_BATCH_ROWS_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "serving/engine/rank_query.h"

namespace backstory {

// Which values of a column are there: bit (first_bit + row), least significant bit first, 1 = there. Null: all are.
struct ValidBits {
  const uint8_t* bits = nullptr;
  size_t first_bit = 0;
  bool operator[](size_t row) const {
    const size_t bit = first_bit + row;
    return bits == nullptr || (bits[bit / 8] >> (bit % 8) & 1) != 0;
  }
};

// Whole numbers of every row. An empty span: the column is not given.
template <typename T>
struct WholeColumn {
  std::span<const T> values;  // [rows]
  ValidBits valid;
  bool has(size_t row) const { return !values.empty() && valid[row]; }
};

// Texts of every row; "" (null or not) = missing. An empty span: the column is not given.
using TextColumn = std::span<const std::string_view>;  // [rows]

struct NumberFeature {
  std::string name;  // 1..64 bytes
  std::variant<std::span<const double>, std::span<const float>, std::span<const int64_t>, std::span<const int32_t>>
      values;  // [rows]
  ValidBits valid;
};

struct TextFeature {
  std::string name;   // 1..64 bytes
  TextColumn values;  // [rows], <= 256 bytes each
};

// Every row is one candidate of one request: "how likely is it that `user` does it with `item`, at `time_us`?" Rows of
// the same user, namespace, scene, times, request id and request features are candidates of the same request.
struct BatchRows {
  size_t rows = 0;  // length of every column that is given

  TextColumn users;               // required. 1..256 bytes each; 64-bit ids as decimal text
  WholeColumn<uint64_t> items;    // required. Ids given as text: IdFromText (features/io/event_json.h)
  WholeColumn<int64_t> times_us;  // required. > 0: `now` of the request; events at or after it are invisible

  WholeColumn<int64_t> as_of_us;      // missing: as of its time. Narrows what is visible below it
  WholeColumn<int64_t> known_by_us;   // missing: whenever it was known. Else a state of its own: dear
  TextColumn namespaces;              // missing: BatchOptions::ns
  TextColumn scenes;                  // missing: BatchOptions::scene
  WholeColumn<uint64_t> request_ids;  // missing or 0: none. History rows of the same request are hidden (one tie group)

  // Features of the request (the user side of a model), and columns of the candidates. A missing value is a request
  // that does not have the feature, or a candidate list that does not have the column: the catalog or the model's
  // default counts, as online.
  std::vector<NumberFeature> request_numbers, candidate_numbers;
  std::vector<TextFeature> request_texts, candidate_texts;
};

// Names of columns in messages, on command lines and in files are these, everywhere (docs/reference/batch-scoring.md).
inline constexpr std::string_view kBatchUser = "user", kBatchItem = "item_id", kBatchTime = "time_us",
                                  kBatchAsOf = "as_of_us", kBatchKnownBy = "known_by_us", kBatchNamespace = "namespace",
                                  kBatchScene = "scene", kBatchRequestId = "request_id",
                                  kBatchRequestNumbers = "request_numbers.", kBatchRequestTexts = "request_texts.",
                                  kBatchCandidateNumbers = "candidate_numbers.",
                                  kBatchCandidateTexts = "candidate_texts.";

struct BadBatchRow {
  size_t row = 0;
  std::string column;  // as named above
  std::string reason;  // names the value and the limit
  bool operator==(const BadBatchRow&) const = default;
};

enum BatchFlag : uint8_t {
  kRowBad = 1,       // not scored; see BatchScores::bad
  kUnknownUser = 2,  // the store never saw this user: scored on an empty history
  kUnknownItem = 4,  // the catalog does not know the item: scored from the row's features
};

// In row order.
struct BatchScores {
  std::vector<ScoreColumn> scores;     // one per task of the model, each [rows]; NaN where the row is bad
  std::vector<uint8_t> flags;          // [rows] BatchFlag
  std::vector<uint32_t> rows_visible;  // [rows] history rows that the candidate attended to, all channels together
  std::vector<BadBatchRow> bad;        // ascending by row, at most one per row

  // The same for all rows of a call.
  std::string model, version, state_id, config_version;
  std::vector<EffectiveParameter> parameters;  // state and request parameters
  uint64_t requests = 0;                       // made of the rows
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_BATCH_BATCH_ROWS_H_
