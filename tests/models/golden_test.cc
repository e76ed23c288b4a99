// Golden cases as text: what is read, what is written, what is refused. Scoring them is in version_test.cc.
#include "models/golden.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_replace.h"
#include "models/grab/init_random.h"
#include "models/grab/random_version.h"

namespace backstory {
namespace {

using ::testing::HasSubstr;

const char kCase[] =
    R"({"name":"a","user":"u","scene":"feed","now_us":1700000100000000,"request_id":9,)"
    R"("events":[{"kind":"exposure","event_id":1,"time_us":1700000000000000,"item_id":42,"scene":"feed"},)"
    R"({"kind":"action","event_id":2,"time_us":1700000005000000,"item_id":42,"action":"click","exposure_id":1}],)"
    R"("items":[{"item_id":42,"categories":["news"]}],)"
    R"("counts":{"42":{"exposures":10,"cells":[{"action":1,"value_bin":0,"count":3},{"action":4,"value_bin":9,"count":1}]}},)"
    R"("features":{"device":"phone","bid":0.5},)"
    R"("candidates":{"item_ids":[42,18446744073709551615],"numbers":{"price":[1.5,null]},"texts":{"brand":["x",""]}},)"
    R"("logits":[[0.25,1],[-0.75,2]],"tolerance":1e-5})";

std::string ErrorOf(const std::string& line) {
  const auto golden = GoldenFromJson(line);
  return golden.ok() ? "accepted" : std::string(golden.status().message());
}

// kCase with one thing changed, which must be there.
std::string ErrorWith(const char* from, const char* to) {
  const std::string changed = absl::StrReplaceAll(kCase, {{from, to}});
  EXPECT_NE(changed, kCase) << from;
  return ErrorOf(changed);
}

TEST(Golden, ReadsEveryKey) {
  const auto golden = GoldenFromJson(kCase);
  ASSERT_TRUE(golden.ok()) << golden.status();
  EXPECT_EQ(golden->name, "a");
  EXPECT_EQ(golden->user, "u");
  EXPECT_EQ(golden->scene, "feed");
  EXPECT_EQ(golden->now_us, 1'700'000'100'000'000);
  EXPECT_EQ(golden->request_id, 9u);
  ASSERT_EQ(golden->events.size(), 2u);
  EXPECT_EQ(golden->events[1].exposure_id, 1u);
  EXPECT_EQ(golden->items.at(42).categories, std::vector<std::string>{"news"});
  EXPECT_EQ(golden->counts.at(42).exposures, 10u);
  ASSERT_EQ(golden->counts.at(42).cells.size(), 2u);
  EXPECT_EQ(golden->counts.at(42).cells[1].value_bin, 9);
  EXPECT_EQ(golden->features.at("device").text, "phone");
  EXPECT_TRUE(golden->features.at("bid").is_number);
  EXPECT_EQ(golden->candidates.item_ids, (std::vector<uint64_t>{42, UINT64_MAX}));
  EXPECT_TRUE(std::isnan(golden->candidates.numbers.at("price")[1]));
  EXPECT_EQ(golden->candidates.texts.at("brand")[0], "x");
  EXPECT_EQ(golden->logits, (std::vector<float>{0.25f, 1.0f, -0.75f, 2.0f}));
  EXPECT_EQ(golden->tolerance, 1e-5);
}

TEST(Golden, RoundTrips) {
  const auto golden = GoldenFromJson(kCase);
  ASSERT_TRUE(golden.ok());
  const std::string text = GoldenToJson(*golden, 2);
  const auto back = GoldenFromJson(text);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(GoldenToJson(*back, 2), text);
  EXPECT_EQ(back->events, golden->events);
  EXPECT_EQ(back->items, golden->items);
  EXPECT_EQ(back->logits, golden->logits);
  for (const GoldenCase& random : grab::RandomGoldens(*grab::PresetConfig("grab-tiny"), 1)) {
    const std::string line = GoldenToJson(random, 1);
    const auto read = GoldenFromJson(line);
    ASSERT_TRUE(read.ok()) << random.name << read.status();
    EXPECT_EQ(read->events, random.events) << random.name;
    EXPECT_EQ(GoldenToJson(*read, 1), line) << random.name;
    EXPECT_TRUE(read->logits.empty());
  }
}

TEST(Golden, RefusesWithTheKey) {
  EXPECT_EQ(ErrorOf(kCase), "accepted");
  EXPECT_NE(ErrorOf(""), "accepted");
  EXPECT_NE(ErrorOf("[]"), "accepted");
  EXPECT_NE(ErrorOf("{}"), "accepted");
  EXPECT_THAT(ErrorOf(std::string(kCase) + '\0' + "x"), HasSubstr("zero byte"));
  EXPECT_NE(ErrorOf(std::string(kCase) + "x"), "accepted");
  EXPECT_THAT(ErrorWith("\"user\"", "\"usr\""), HasSubstr("usr: unknown key"));
  EXPECT_THAT(ErrorWith("\"name\":\"a\"", "\"name\":1"), HasSubstr("name: not a text"));
  EXPECT_THAT(ErrorWith("\"name\":\"a\",", ""), HasSubstr("name: missing"));
  EXPECT_THAT(ErrorWith("\"now_us\":1700000100000000,", ""), HasSubstr("now_us: missing"));
  EXPECT_THAT(ErrorWith("1700000100000000", "-1"), HasSubstr("now_us: not an integer"));
  EXPECT_THAT(ErrorWith("1700000100000000", "9223372036854775808"), HasSubstr("now_us: "));
  EXPECT_THAT(ErrorWith("\"request_id\":9", "\"request_id\":1.5"), HasSubstr("request_id: not an integer"));
  EXPECT_THAT(ErrorWith("1700000005000000", "1600000005000000"), HasSubstr("events[1]: not after the one before"));
  EXPECT_THAT(ErrorWith("\"kind\":\"action\"", "\"kind\":\"thought\""), HasSubstr("events[1]: "));
  EXPECT_THAT(ErrorWith("{\"item_id\":42,\"categories\":[\"news\"]}", "{\"item_id\":42},{\"item_id\":42}"),
              HasSubstr("items[1]: item 42 twice"));
  EXPECT_THAT(ErrorWith("\"exposures\":10", "\"exposures\":-10"), HasSubstr("counts.42.exposures: "));
  EXPECT_THAT(ErrorWith("\"count\":3", "\"count\":0"), HasSubstr("cells[0]: count 0"));
  EXPECT_THAT(ErrorWith("\"value_bin\":9", "\"value_bin\":16"), HasSubstr("value_bin: 16 exceeds 15"));
  EXPECT_NE(ErrorWith("\"action\":4,", "\"action\":1,\"value_bin\":0,"), "accepted") << "a key twice";
  EXPECT_THAT(ErrorWith("{\"action\":4,\"value_bin\":9", "{\"action\":0,\"value_bin\":9"), HasSubstr("not ascending"));
  EXPECT_THAT(ErrorWith("\"bid\":0.5", "\"bid\":true"), HasSubstr("features.bid: "));
  EXPECT_THAT(ErrorWith("[42,18446744073709551615]", "[]"), HasSubstr("candidates"));
  EXPECT_THAT(ErrorWith("[42,18446744073709551615]", "[42,18446744073709551616]"),
              HasSubstr("item_ids[1]: not an integer"));
  EXPECT_THAT(ErrorWith("[1.5,null]", "[1.5]"), HasSubstr("one value per item id"));
  EXPECT_THAT(ErrorWith("[\"x\",\"\"]", "[\"x\",null]"), HasSubstr("candidates.texts.brand[1]: not a text"));
  EXPECT_THAT(ErrorWith("[[0.25,1],[-0.75,2]]", "[[0.25,1]]"), HasSubstr("logits: 1 rows for 2 candidates"));
  EXPECT_THAT(ErrorWith("[[0.25,1],[-0.75,2]]", "[[0.25,1],[-0.75]]"),
              HasSubstr("logits[1]: 1 logits, the first row has 2"));
  EXPECT_THAT(ErrorWith("[[0.25,1],[-0.75,2]]", "[0.25,1]"), HasSubstr("logits[0]: not a row"));
  EXPECT_THAT(ErrorWith("-0.75", "null"), HasSubstr("logits[1][0]: not a number"));
  EXPECT_THAT(ErrorWith("1e-5", "0"), HasSubstr("tolerance: 0 is outside"));
  EXPECT_THAT(ErrorWith("1e-5", "1e-3"), HasSubstr("tolerance: "));
  EXPECT_NE(ErrorOf(std::string(100'000, '[')), "accepted") << "nesting is bounded";
}

TEST(Golden, FilesReportTheirLine) {
  const std::string line = kCase, other = absl::StrReplaceAll(line, {{"\"name\":\"a\"", "\"name\":\"b\""}});
  const auto both = ParseGoldens(line + "\n\n" + other, "g");
  ASSERT_TRUE(both.ok()) << both.status();
  EXPECT_EQ(both->size(), 2u);
  EXPECT_TRUE(ParseGoldens("", "g")->empty());
  EXPECT_EQ(ParseGoldens(line + "\r\n" + other + "\r\n", "g")->size(), 2u);
  EXPECT_THAT(std::string(ParseGoldens(line + "\n\n" + line, "g").status().message()),
              HasSubstr("g:3: name: \"a\" twice"));
  EXPECT_THAT(std::string(ParseGoldens(line + "\n{\n" + other, "g").status().message()), HasSubstr("g:2: "));
}

}  // namespace
}  // namespace backstory
