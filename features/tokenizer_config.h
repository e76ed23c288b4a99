// What turns a history into tokens: fields, action classes, channels, windows. Part of a model version
// (model.textproto); every setting that partial tokens depend on enters the state id.
#ifndef BACKSTORY_FEATURES_TOKENIZER_CONFIG_H_
#define BACKSTORY_FEATURES_TOKENIZER_CONFIG_H_

#include <cstdint>
#include <string>
#include <vector>

#include "features/event.h"

namespace backstory {

// Where a sparse field's ids come from. P = allowed in partial tokens, F = allowed in full tokens.
enum class SparseSource {
  kItemId,          // P F  hashed item id
  kItemCategories,  // P F  each category hashed
  kItemSid,         // P F  one id per level
  kItemYear,        // P F  year, in steps of 5 from 1900 (number 1), earlier is number 0
  kActionClass,     // P    action class of the row
  kActionValue,     // P    ValueBin of the joined action
  kPosition,        // P    floor(log2(position + 1)) of an exposure
  kScene,           // P F  hashed scene (F: scene of the request)
  kEventContext,    // P    hashed value of context field `attribute`
  kUserId,          // F    hashed user id (user side)
  kRequestFeature,  // F    hashed value of request feature `attribute`: user side if typed on the request,
                    //      item side if a candidate column
  kItemString,      // F    hashed value of mutable item string `attribute`
  kHourOfDay,       // P F  hour of day of the row / of now, UTC
  kDayOfWeek,       // P F
};

struct SparseFieldConfig {
  std::string name;
  SparseSource source = SparseSource::kItemId;
  std::string attribute;  // for sources that name a field
  std::string table;      // embedding table; fields with the same table share it, its vocab and its hash salt
  // Rows of the table, >= 2; row 0 is "missing". Names, ids and texts are hash % (vocab - 1) + 1. Small numbers (class,
  // value bin, position, year, hour, day) are not hashed: min(number, vocab - 2) + 1, so that they never collide.
  uint32_t vocab = 0;
};

// Dense (numeric) inputs of full tokens. All counts are strictly before `now` and exclude the request's tie group.
// A rate is (positives + prior * prior_weight) / (n + prior_weight), given as logit(rate) - logit(prior).
enum class DenseSource {
  kItemRate,          // item side, from ItemCounts by the label rule
  kItemLogCount,      // item side, log1p(n)
  kUserRate,          // user side, from the user's own rows
  kUserLogCount,      // user side, log1p(n)
  kUserMeanValue,     // user side, mean action value - prior_value, 0 if none
  kItemMeanValue,     // item side, mean of bin / 2 - prior_value, 0 if none
  kUserLogGap,        // user side, log1p(seconds since the newest visible row), 0 if none
  kItemAge,           // item side, (year of now - item year) / 10, 0 if unknown
  kItemNumber,        // item side, mutable number `attribute`
  kRequestNumber,     // request feature or candidate column `attribute`
  kUserCategoryRate,  // item side: the user's own rate over past rows that share a category with the candidate (a row
                      // counts once per shared category), smoothed by prior_weight rows of the user's rate; given as
                      // logit minus logit of the user's rate
};

struct DenseFieldConfig {
  std::string name;
  DenseSource source = DenseSource::kItemRate;
  std::string attribute;
  float prior = 0.5f;
  float prior_weight = 20.0f;
  float prior_value = 0.0f;
  float scale = 1.0f;  // the value is multiplied by it, then clamped to [-10, 10]
};

// A row's class: the first rule that matches its joined action; class ids are what attention's action bias indexes.
struct ActionRule {
  ActionType action = ActionType::kNone;  // kNone matches a row without action
  float min_value = -3.4e38f;             // inclusive
  float max_value = 3.4e38f;              // exclusive
  int32_t action_class = 0;               // < n_act - 1 (the last class is the candidate itself)
};

// What counts as a positive label and as a labelled row.
struct LabelRule {
  ActionType action = ActionType::kClick;
  float min_value = -3.4e38f;          // positive if value >= min_value
  bool unlabelled_is_negative = true;  // an exposure without such an action is a negative; else not a target
};

struct ChannelConfig {
  std::string name;
  std::vector<int32_t> action_classes;  // rows of these classes; empty = all rows
};

// Whether rows whose label window is still open are shown with what is known so far, or hidden until it is over.
// kHide makes packed training and serving see identical rows.
enum class OpenRows { kAsKnown, kHide };

struct TokenizerConfig {
  uint32_t feature_version = 1;  // names the semantics of this file; the binary supports a stated set
  uint64_t hash_salt = 0;
  std::vector<SparseFieldConfig> partial;    // P view
  std::vector<SparseFieldConfig> full;       // F view; user-side sources first is not required
  std::vector<DenseFieldConfig> full_dense;  // F view
  std::vector<ActionRule> actions;
  int32_t default_action_class = 0;
  LabelRule label;
  std::vector<ChannelConfig> channels;
  int64_t label_window_us = 0;  // an action joins its exposure if it happens less than this time after it
  OpenRows open_rows = OpenRows::kAsKnown;
  int64_t stats_granularity_us = 3'600'000'000;  // item counts are taken up to the start of now's bucket
};

}  // namespace backstory

#endif  // BACKSTORY_FEATURES_TOKENIZER_CONFIG_H_
