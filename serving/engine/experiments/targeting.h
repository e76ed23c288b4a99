// Who is in an experiment: a small expression over what is known before ranking.
//
//   scene == "home" and features.country in ["de", "at"] and not features.app_version < 12
//
//   or        = and { "or" and }
//   and       = unary { "and" unary }
//   unary     = "not" unary | "(" or ")" | "true" | "false" | "has" "(" attribute ")" | test
//   test      = attribute ("==" | "!=" | "<" | "<=" | ">" | ">=") literal | attribute ["not"] "in" "[" literal {"," literal} "]"
//   attribute = "namespace" | "scene" | "user" | "device" | "session" | "features." name
//   literal   = number | 'text' | "text"     (\\, \", \' escape)
//
// Total: every expression has a value for every request. A test on an attribute that is absent (or an empty id or scene),
// or of the other type, is false, "!=" and "not in" included; `has` asks for presence. Ordering compares numbers only.
#ifndef BACKSTORY_SERVING_ENGINE_EXPERIMENTS_TARGETING_H_
#define BACKSTORY_SERVING_ENGINE_EXPERIMENTS_TARGETING_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "features/tokenizer.h"
#include "serving/engine/experiment.h"

namespace backstory {

inline constexpr size_t kTargetingBytesMax = 4096;
inline constexpr size_t kTargetingNodesMax = 256;
inline constexpr int kTargetingDepthMax = 32;

// What an expression is asked about. Everything outlives the call.
struct TargetingInput {
  std::string_view ns, scene;
  const Units* units = nullptr;
  const FeatureMap* features = nullptr;
};

// Immutable; thread-safe. Evaluation allocates nothing.
class Targeting {
 public:
  Targeting() = default;  // everybody
  // INVALID_ARGUMENT "column C: reason" (columns count from 1). Empty or blank text is everybody.
  static absl::StatusOr<Targeting> Parse(std::string_view text);

  bool Matches(const TargetingInput& input) const { return nodes_.empty() || Evaluate(root_, input); }
  bool everybody() const { return nodes_.empty(); }

 private:
  friend class TargetingParser;
  enum class Kind : uint8_t { kAnd, kOr, kNot, kConstant, kHas, kCompare, kIn };
  enum class Op : uint8_t { kEqual, kNotEqual, kLess, kLessEqual, kGreater, kGreaterEqual };
  enum class Attribute : uint8_t { kNamespace, kScene, kUser, kDevice, kSession, kFeature };
  struct Literal {
    bool is_number = false;
    double number = 0;
    std::string text;
  };
  struct Node {
    Kind kind = Kind::kConstant;
    Op op = Op::kEqual;
    Attribute attribute = Attribute::kScene;
    bool negated = false;  // kIn: "not in"; kConstant: false
    int left = -1, right = -1;
    std::string feature;
    std::vector<Literal> literals;
  };
  struct Value {
    bool present = false, is_number = false;
    double number = 0;
    std::string_view text;
  };
  bool Evaluate(int index, const TargetingInput& input) const;
  static Value Read(const Node& node, const TargetingInput& input);
  static bool Equal(const Value& value, const Literal& literal);
  static bool Compare(const Value& value, const Node& node);

  std::vector<Node> nodes_;
  int root_ = 0;
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_EXPERIMENTS_TARGETING_H_
