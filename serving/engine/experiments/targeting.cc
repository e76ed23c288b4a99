#include "serving/engine/experiments/targeting.h"

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

#include <cmath>
#include <optional>

namespace backstory {

// Recursive descent over bytes. The first problem ends it.
class TargetingParser {
 public:
  explicit TargetingParser(std::string_view text) : text_(text) {}

  absl::StatusOr<Targeting> Run() {
    if (text_.size() > kTargetingBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("column ", kTargetingBytesMax + 1, ": longer than ", kTargetingBytesMax, " bytes"));
    }
    Skip();
    if (at_ == text_.size()) return Targeting();
    const int root = Or(0);
    if (error_.empty() && at_ < text_.size()) Fail(at_, "expected \"and\", \"or\" or the end");
    if (!error_.empty()) return absl::InvalidArgumentError(error_);
    result_.root_ = root;
    return std::move(result_);
  }

 private:
  using Kind = Targeting::Kind;
  using Op = Targeting::Op;
  using Attribute = Targeting::Attribute;
  using Literal = Targeting::Literal;
  using Node = Targeting::Node;

  // Returns a node index that is not used once an error is set.
  int Fail(size_t at, std::string_view reason) {
    if (error_.empty()) error_ = absl::StrCat("column ", at + 1, ": ", absl::string_view(reason.data(), reason.size()));
    return -1;
  }
  int Add(Node node) {
    if (result_.nodes_.size() == kTargetingNodesMax) {
      return Fail(at_, absl::StrCat("more than ", kTargetingNodesMax, " tests and operators"));
    }
    result_.nodes_.push_back(std::move(node));
    return static_cast<int>(result_.nodes_.size()) - 1;
  }
  void Skip() {
    while (at_ < text_.size() && absl::ascii_isspace(static_cast<unsigned char>(text_[at_]))) ++at_;
  }
  static bool WordByte(char c) { return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '.' || c == '-'; }
  std::string_view PeekWord() {
    Skip();
    size_t end = at_;
    while (end < text_.size() && WordByte(text_[end])) ++end;
    return text_.substr(at_, end - at_);
  }
  bool TakeWord(std::string_view word) {
    if (PeekWord() != word) return false;
    at_ += word.size();
    return true;
  }
  bool Take(std::string_view symbol) {
    Skip();
    if (text_.substr(at_, symbol.size()) != symbol) return false;
    at_ += symbol.size();
    return true;
  }

  // A chain leans left: its length, at most kTargetingNodesMax, is the depth of its evaluation.
  int Chain(int depth, Kind kind, std::string_view word) {
    int left = kind == Kind::kOr ? Chain(depth, Kind::kAnd, "and") : Unary(depth);
    while (error_.empty() && TakeWord(word)) {
      Node node;
      node.kind = kind;
      node.left = left;
      node.right = kind == Kind::kOr ? Chain(depth, Kind::kAnd, "and") : Unary(depth);
      left = Add(std::move(node));
    }
    return left;
  }
  int Or(int depth) { return Chain(depth, Kind::kOr, "or"); }

  int Unary(int depth) {
    if (!error_.empty()) return -1;
    Skip();
    if (depth >= kTargetingDepthMax) return Fail(at_, absl::StrCat("nested deeper than ", kTargetingDepthMax));
    if (TakeWord("not")) {
      Node node;
      node.kind = Kind::kNot;
      node.left = Unary(depth + 1);
      return error_.empty() ? Add(std::move(node)) : -1;
    }
    if (Take("(")) {
      const int inner = Or(depth + 1);
      if (error_.empty() && !Take(")")) return Fail(at_, "expected \")\"");
      return inner;
    }
    for (const bool value : {true, false}) {
      if (!TakeWord(value ? "true" : "false")) continue;
      Node node;
      node.negated = !value;
      return Add(std::move(node));
    }
    if (TakeWord("has")) return Has();
    return Test();
  }

  int Has() {
    Node node;
    node.kind = Kind::kHas;
    if (!Take("(")) return Fail(at_, "expected \"(\" after has");
    if (!ReadAttribute(&node)) return -1;
    if (!Take(")")) return Fail(at_, "expected \")\"");
    return Add(std::move(node));
  }

  int Test() {
    Node node;
    if (!ReadAttribute(&node)) return -1;
    const bool negated = TakeWord("not");
    if (TakeWord("in")) {
      node.kind = Kind::kIn;
      node.negated = negated;
      return List(std::move(node));
    }
    if (negated) return Fail(at_, "expected \"in\" after \"not\"");
    node.kind = Kind::kCompare;
    Skip();
    // Longer symbols first.
    constexpr std::pair<std::string_view, Op> kOps[] = {{"==", Op::kEqual},     {"!=", Op::kNotEqual},
                                                        {"<=", Op::kLessEqual}, {">=", Op::kGreaterEqual},
                                                        {"<", Op::kLess},       {">", Op::kGreater}};
    bool found = false;
    for (const auto& [symbol, op] : kOps) {
      if (!Take(symbol)) continue;
      node.op = op;
      found = true;
      break;
    }
    if (!found) return Fail(at_, "expected ==, !=, <, <=, >, >= or in");
    Skip();
    const size_t at = at_;
    std::optional<Literal> literal = ReadLiteral();
    if (!literal) return -1;
    const bool ordering = node.op != Op::kEqual && node.op != Op::kNotEqual;
    if (ordering && !literal->is_number) return Fail(at, "<, <=, > and >= compare numbers only");
    if (node.attribute != Attribute::kFeature && literal->is_number) {
      return Fail(at, "ids, scene and namespace are texts: quote the value");
    }
    node.literals.push_back(*std::move(literal));
    return Add(std::move(node));
  }

  int List(Node node) {
    if (!Take("[")) return Fail(at_, "expected \"[\" after in");
    do {
      Skip();
      const size_t at = at_;
      std::optional<Literal> literal = ReadLiteral();
      if (!literal) return -1;
      if (node.attribute != Attribute::kFeature && literal->is_number) {
        return Fail(at, "ids, scene and namespace are texts: quote the value");
      }
      node.literals.push_back(*std::move(literal));
    } while (Take(","));
    if (!Take("]")) return Fail(at_, "expected \",\" or \"]\"");
    return Add(std::move(node));
  }

  bool ReadAttribute(Node* node) {
    constexpr std::pair<std::string_view, Attribute> kNames[] = {{"namespace", Attribute::kNamespace},
                                                                 {"scene", Attribute::kScene},
                                                                 {"user", Attribute::kUser},
                                                                 {"device", Attribute::kDevice},
                                                                 {"session", Attribute::kSession}};
    const std::string_view word = PeekWord();
    for (const auto& [name, attribute] : kNames) {
      if (word != name) continue;
      node->attribute = attribute;
      at_ += word.size();
      return true;
    }
    constexpr std::string_view kFeatures = "features.";
    if (word.starts_with(kFeatures) && word.size() > kFeatures.size()) {
      node->attribute = Attribute::kFeature;
      node->feature = word.substr(kFeatures.size());
      at_ += word.size();
      return true;
    }
    if (word.empty()) {
      Fail(at_, at_ == text_.size() ? "unexpected end" : "expected an attribute");
    } else {
      Fail(at_, absl::StrCat("unknown attribute \"", absl::string_view(word.data(), word.size()),
                             "\" (namespace, scene, user, device, session, features.<name>)"));
    }
    return false;
  }

  std::optional<Literal> ReadLiteral() {
    Skip();
    const size_t start = at_;
    if (at_ < text_.size() && (text_[at_] == '"' || text_[at_] == '\'')) return ReadText(start);
    size_t end = at_;
    while (end < text_.size() && (WordByte(text_[end]) || text_[end] == '+')) ++end;
    Literal literal;
    literal.is_number = true;
    const absl::string_view word(text_.data() + start, end - start);
    const bool digit = !word.empty() && (absl::ascii_isdigit(static_cast<unsigned char>(word[0])) || word[0] == '-' || word[0] == '.');
    if (!digit || !absl::SimpleAtod(word, &literal.number) || !std::isfinite(literal.number)) {
      Fail(start, "expected a finite number or a quoted text");
      return std::nullopt;
    }
    at_ = end;
    return literal;
  }

  std::optional<Literal> ReadText(size_t start) {
    const char quote = text_[at_++];
    Literal literal;
    while (at_ < text_.size() && text_[at_] != quote) {
      if (text_[at_] == '\\') {
        ++at_;
        if (at_ == text_.size() || (text_[at_] != '\\' && text_[at_] != '"' && text_[at_] != '\'')) {
          Fail(at_ - 1, "only \\\\, \\\" and \\' are escapes");
          return std::nullopt;
        }
      }
      literal.text.push_back(text_[at_++]);
    }
    if (at_ == text_.size()) {
      Fail(start, "text without closing quote");
      return std::nullopt;
    }
    ++at_;
    return literal;
  }

  const std::string_view text_;
  size_t at_ = 0;
  std::string error_;
  Targeting result_;
};

absl::StatusOr<Targeting> Targeting::Parse(std::string_view text) { return TargetingParser(text).Run(); }

bool Targeting::Evaluate(int index, const TargetingInput& input) const {
  const Node& node = nodes_[index];
  switch (node.kind) {
    case Kind::kAnd:
      return Evaluate(node.left, input) && Evaluate(node.right, input);
    case Kind::kOr:
      return Evaluate(node.left, input) || Evaluate(node.right, input);
    case Kind::kNot:
      return !Evaluate(node.left, input);
    case Kind::kConstant:
      return !node.negated;
    case Kind::kHas:
      return Read(node, input).present;
    case Kind::kCompare:
      return Compare(Read(node, input), node);
    case Kind::kIn: {
      const Value value = Read(node, input);
      bool comparable = false, found = false;
      for (const Literal& literal : node.literals) {
        comparable |= value.present && value.is_number == literal.is_number;
        found |= Equal(value, literal);
      }
      return comparable && found != node.negated;
    }
  }
  return false;
}

Targeting::Value Targeting::Read(const Node& node, const TargetingInput& input) {
  Value value;
  switch (node.attribute) {
    case Attribute::kNamespace:
      value.text = input.ns;
      break;
    case Attribute::kScene:
      value.text = input.scene;
      break;
    case Attribute::kUser:
      value.text = input.units->user;
      break;
    case Attribute::kDevice:
      value.text = input.units->device;
      break;
    case Attribute::kSession:
      value.text = input.units->session;
      break;
    case Attribute::kFeature: {
      const auto found = input.features->find(node.feature);
      if (found == input.features->end()) return value;
      value.present = true;
      value.is_number = found->second.is_number;
      value.number = found->second.number;
      value.text = found->second.text;
      return value;
    }
  }
  value.present = !value.text.empty();
  return value;
}

bool Targeting::Equal(const Value& value, const Literal& literal) {
  if (!value.present || value.is_number != literal.is_number) return false;
  return literal.is_number ? value.number == literal.number : value.text == literal.text;
}

bool Targeting::Compare(const Value& value, const Node& node) {
  const Literal& literal = node.literals.front();
  if (!value.present || value.is_number != literal.is_number) return false;
  switch (node.op) {
    case Op::kEqual:
      return Equal(value, literal);
    case Op::kNotEqual:
      return !Equal(value, literal);
    case Op::kLess:
      return value.number < literal.number;
    case Op::kLessEqual:
      return value.number <= literal.number;
    case Op::kGreater:
      return value.number > literal.number;
    case Op::kGreaterEqual:
      return value.number >= literal.number;
  }
  return false;
}

}  // namespace backstory
