#include "serving/engine/experiments/targeting.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

namespace backstory {
namespace {

const Units kUnits{"ann", "phone-1", ""};
const FeatureMap kFeatures = {
    {"country", {"de", 0, false}}, {"app_version", {"", 12.5, true}}, {"empty", {"", 0, false}}, {"a-b.c", {"x", 0, false}}};

bool Matches(std::string_view text) {
  const auto targeting = Targeting::Parse(text);
  EXPECT_TRUE(targeting.ok()) << text << ": " << targeting.status();
  return targeting.ok() && targeting->Matches({"shop", "home", &kUnits, &kFeatures});
}

std::string ErrorOf(std::string_view text) {
  const auto targeting = Targeting::Parse(text);
  return targeting.ok() ? "" : std::string(targeting.status().message());
}

TEST(Targeting, ComparesAttributes) {
  for (const char* yes :
       {"", "  ", "true", "scene == 'home'", "scene == \"home\"", "scene != 'cart'", "namespace == 'shop'", "user == 'ann'",
        "device in ['phone-1']", "features.country in ['at', 'de']", "features.country not in ['fr']",
        "features.app_version >= 12.5", "features.app_version < 1e3", "features.app_version == 12.5",
        "features.app_version in [1, 12.5]", "features.app_version > -3", "has(features.country)", "has ( device )",
        "features.a-b.c == 'x'", "has(features.empty) and features.empty == ''"}) {
    EXPECT_TRUE(Matches(yes)) << yes;
  }
  for (const char* no : {"false", "scene == 'Home'", "scene != 'home'", "user == 'an'", "features.app_version < 12.5",
                         "features.app_version > 12.5", "features.country not in ['de']", "has(session)"}) {
    EXPECT_FALSE(Matches(no)) << no;
  }
}

TEST(Targeting, AbsentOrOtherTypeIsFalseWhateverTheTest) {
  for (const char* no : {"session == 'x'", "session != 'x'", "session in ['x']", "session not in ['x']",
                         "features.none == 1", "features.none != 1", "features.none < 1", "features.none not in [1]",
                         "features.country == 1", "features.country != 1", "features.country not in [1]",
                         "features.app_version == '12.5'", "features.app_version != 'x'", "has(features.none)"}) {
    EXPECT_FALSE(Matches(no)) << no;
    EXPECT_TRUE(Matches(std::string("not ") + no)) << no;
  }
}

TEST(Targeting, AndBindsTighterThanOrAndNotTightest) {
  EXPECT_TRUE(Matches("true or true and false"));
  EXPECT_FALSE(Matches("(true or true) and false"));
  EXPECT_TRUE(Matches("not false or true"));
  EXPECT_FALSE(Matches("not (false or true)"));
  EXPECT_TRUE(Matches("not not true"));
  EXPECT_TRUE(Matches("not false and not false"));
}

TEST(Targeting, EscapesInTexts) {
  const FeatureMap features = {{"q", {"a'b\"c\\d", 0, false}}};
  const auto targeting = Targeting::Parse(R"(features.q == 'a\'b\"c\\d')");
  ASSERT_TRUE(targeting.ok()) << targeting.status();
  EXPECT_TRUE(targeting->Matches({"", "", &kUnits, &features}));
}

TEST(Targeting, ErrorsNameTheColumn) {
  const std::pair<const char*, const char*> kCases[] = {
      {"scene = 'home'", "column 7: expected ==, !=, <, <=, >, >= or in"},
      {"scene == home", "column 10: expected a finite number or a quoted text"},
      {"scene == 'home", "column 10: text without closing quote"},
      {"scene == 'a\\n'", "column 12: only \\\\, \\\" and \\' are escapes"},
      {"scene < 'a'", "column 9: <, <=, > and >= compare numbers only"},
      {"user == 4", "column 9: ids, scene and namespace are texts: quote the value"},
      {"user in ['a', 4]", "column 15: ids, scene and namespace are texts: quote the value"},
      {"sceen == 'a'", "column 1: unknown attribute \"sceen\" (namespace, scene, user, device, session, features.<name>)"},
      {"features. == 1", "column 1: unknown attribute \"features.\" (namespace, scene, user, device, session, "
                         "features.<name>)"},
      {"(true", "column 6: expected \")\""},
      {"true)", "column 5: expected \"and\", \"or\" or the end"},
      {"true true", "column 6: expected \"and\", \"or\" or the end"},
      {"true and", "column 9: unexpected end"},
      {"not", "column 4: unexpected end"},
      {"scene in []", "column 11: expected a finite number or a quoted text"},
      {"scene in ['a'", "column 14: expected \",\" or \"]\""},
      {"scene in 'a'", "column 10: expected \"[\" after in"},
      {"scene not == 'a'", "column 11: expected \"in\" after \"not\""},
      {"has scene", "column 5: expected \"(\" after has"},
      {"features.x == 1e999", "column 15: expected a finite number or a quoted text"},
      {"features.x == nan", "column 15: expected a finite number or a quoted text"},
      {"features.x == inf", "column 15: expected a finite number or a quoted text"},
      {"== 1", "column 1: expected an attribute"},
  };
  for (const auto& [text, error] : kCases) EXPECT_EQ(ErrorOf(text), error) << text;
}

TEST(Targeting, LimitsEnd) {
  std::string deep, wide = "true";
  for (int i = 0; i < kTargetingDepthMax + 1; ++i) deep += "(";
  EXPECT_NE(ErrorOf(deep).find("nested deeper than 32"), std::string::npos);
  std::string nots;
  for (int i = 0; i < 100'000 && nots.size() + 8 < kTargetingBytesMax; ++i) nots += "not ";
  EXPECT_NE(ErrorOf(nots + "true").find("nested deeper than 32"), std::string::npos);
  for (int i = 0; i < 200; ++i) wide += " or true";
  EXPECT_NE(ErrorOf(wide).find("more than 256 tests and operators"), std::string::npos);
  EXPECT_EQ(ErrorOf(std::string(kTargetingBytesMax + 1, ' ')), "column 4097: longer than 4096 bytes");
}

// Any bytes are parsed or refused, never a crash; and what parses evaluates.
TEST(Targeting, ArbitraryTextIsParsedOrRefused) {
  constexpr unsigned kSeed = 23;
  std::mt19937 random(kSeed);
  const std::string words[] = {"scene", "==", "'a'", "and", "or", "not", "(", ")", "in", "[", "]", "1", ",", "has", "features.x", "\\", "\"", "\x80"};
  int parsed = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string text;
    for (size_t i = random() % 12; i > 0; --i) text += words[random() % std::size(words)] + (random() % 4 ? " " : "");
    const auto targeting = Targeting::Parse(text);
    if (!targeting.ok()) {
      EXPECT_EQ(targeting.status().message().substr(0, 7), "column ") << "seed " << kSeed << " text " << text;
      continue;
    }
    ++parsed;
    targeting->Matches({"", "", &kUnits, &kFeatures});
  }
  EXPECT_GT(parsed, 1000);
}

}  // namespace
}  // namespace backstory
