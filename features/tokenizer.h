// History -> token arrays. The only tokenizer there is: serving, batch scoring and training all call these functions.
// Pure: same input, same output, no clock, no global state. Thread-safe.
#ifndef BACKSTORY_FEATURES_TOKENIZER_H_
#define BACKSTORY_FEATURES_TOKENIZER_H_

#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "features/event.h"
#include "features/item.h"
#include "features/token.h"
#include "features/tokenizer_config.h"

namespace backstory {

// One row of a user's history before hashing: an exposure with the actions that joined it, or a lone action.
struct HistoryRow {
  int64_t time_us = 0;  // of the exposure or lone action
  uint64_t event_id = 0;
  uint64_t item_id = 0;
  int64_t tie = 0;  // tie-group key, see TieKey
  EventKind kind = EventKind::kExposure;
  uint32_t position = 0;
  std::string scene;
  ActionType action = ActionType::kNone;  // the joined action that matched the earliest ActionRule; kNone if none
  float value = 0;
  int32_t action_class = 0;
  bool labelled = false;  // is a training target and counts in user statistics
  bool positive = false;  // an action of the label rule joined it (or it is one)
  // From here on this row and every row before it are final: the largest, over the rows up to this one, of
  // time_us + label_window for exposures and time_us for lone actions. Non-decreasing, so "closed at now" is a prefix.
  int64_t closed_us = 0;
  std::vector<ContextField> context;  // of the exposure or lone action
  bool operator==(const HistoryRow&) const = default;
};

// Same request, same key; without request id, same time, same key. Keys are >= 0 and equal only within a tie group
// (request ids and times are mapped to disjoint halves).
int64_t TieKey(uint64_t request_id, int64_t time_us);
inline bool IsRequestTie(int64_t tie) { return tie >= 0 && tie < int64_t{1} << 62; }

// Joins actions to exposures. `events` in canonical order, tombstones removed. Events that `as_of` does not see do not
// exist for it (a read through the store has dropped them already). Rows come in canonical order of their exposure or
// lone action. An action joins the exposure it names if both are of one item and it came less than label_window after
// it (0 <= action - exposure < label_window); an action whose exposure is absent, of another item, or outside the
// window stands alone. Of several joined actions the one of the earliest ActionRule gives the row its class (the first
// in canonical order among equals); the row is positive if any of them satisfies the label rule.
std::vector<HistoryRow> JoinHistory(std::span<const Event> events, AsOf as_of, const TokenizerConfig& config);

// Immutable facts of an item, or nullptr if unknown. Must stay valid during the call.
using ItemLookup = std::function<const Item*(uint64_t item_id)>;

// Partial tokens of all channels. rows in canonical order; `now_us` decides closed / open rows (INT64_MAX: all closed).
// Under OpenRows::kHide the open rows are left out. A value that is missing becomes table row 0.
std::vector<ChannelRows> TokenizeHistory(std::span<const HistoryRow> rows, int64_t now_us, const ItemLookup& items,
                                         const TokenizerConfig& config);

// What the user side of a full token needs to know of the user's own past.
struct UserSummary {
  uint64_t rows = 0;  // labelled rows visible
  uint64_t positives = 0;
  double value_sum = 0;  // of rows with an action
  uint64_t value_count = 0;
  int64_t newest_us = -1;  // time of the newest visible row, -1 = none
  std::map<std::string, std::pair<uint64_t, uint64_t>, std::less<>> categories;  // -> {labelled rows, positives}
  bool operator==(const UserSummary&) const = default;
};

// Over rows with time_us < now_us and tie != `tie`. Only closed rows (closed_us <= now_us) are counted, so that the
// same row counts the same however much of its future is stored; newest_us looks at open rows as well. Rows in
// canonical order. A row of several categories counts in each. O(rows): features/user_summary.h keeps a running one.
UserSummary Summarise(std::span<const HistoryRow> rows, int64_t now_us, int64_t tie, const ItemLookup& items);

// A typed request feature: text (hashed) or number.
struct FeatureValue {
  std::string text;
  double number = 0;
  bool is_number = false;
};
using FeatureMap = std::map<std::string, FeatureValue>;

// Candidate columns: each named column has one value per candidate (or is absent). A column named like a catalog field
// wins over the catalog: "year" and kItemNumber attributes among numbers; "categories" ('|' between them) and
// kItemString attributes among texts. An empty text and a NaN number mean "absent for this candidate".
struct CandidateColumns {
  std::vector<uint64_t> item_ids;
  std::map<std::string, std::vector<float>> numbers;      // each of item_ids.size()
  std::map<std::string, std::vector<std::string>> texts;  // each of item_ids.size()
};

// Where features came from, counted per request (precedence: request > catalog > model table > default).
struct FeatureReport {
  uint32_t unknown_items = 0;
  uint32_t from_request = 0;
  uint32_t from_catalog = 0;
  uint32_t defaulted = 0;
};

// Item counts -> {n, positives, value_sum} under the label rule. n is the number of label actions, or of exposures if
// that is larger and exposures without label count as negatives. Values are those of label actions, as bin / 2; a bin
// is positive if bin / 2 >= label.min_value (the top bin, open above, always is).
struct RateCounts {
  double n = 0;
  double positives = 0;
  double value_sum = 0;
  double value_count = 0;
};
RateCounts CountsByRule(const ItemCounts& counts, const LabelRule& rule);

struct CandidateInput {
  std::string_view user;
  std::string_view scene;
  int64_t now_us = 0;
  int64_t tie = CandidateTokens::kNoTie;
  const UserSummary* summary = nullptr;
  const FeatureMap* request = nullptr;
  const CandidateColumns* candidates = nullptr;
  std::function<const Item*(uint64_t)> items;  // nullptr = unknown item
  std::function<ItemCounts(uint64_t)> counts;  // strictly before now's statistics bucket
  // All at once instead, [candidates] in order; counts by the configuration's label rule (CountsByRule).
  std::span<const Item* const> found_items;
  std::span<const RateCounts> found_counts;
};

// Whether any field reads item counts.
bool WantsCounts(const TokenizerConfig& config);

CandidateTokens TokenizeCandidates(const CandidateInput& input, const TokenizerConfig& config, FeatureReport* report);

// Refuses a configuration the tokenizer cannot run: names the field and the limit.
absl::Status ValidateTokenizerConfig(const TokenizerConfig& config);

// Which full fields are user side, in column order (the rest is item side). Request features are user side unless the
// attribute starts with "cand.", which names a candidate column (without the prefix).
bool IsUserSide(const SparseFieldConfig& field);
bool IsUserSide(const DenseFieldConfig& field);

}  // namespace backstory

#endif  // BACKSTORY_FEATURES_TOKENIZER_H_
