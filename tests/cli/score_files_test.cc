// Reading rows to score, writing scores, and the folder of parts: everything about `backstory score` but the scoring.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "features/io/event_json.h"
#include "nlohmann/json.hpp"
#include "serving/cli/score_input.h"
#include "serving/cli/score_output.h"
#include "serving/cli/score_parts.h"
#include "tests/models/temp_dir.h"

namespace backstory {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

class ScoreFilesTest : public testing::Test {
 protected:
  ScoreInput Open(const std::string& name, const std::string& text, const ScoreMapping& mapping = {}) {
    WriteAll(dir_.path(name), text);
    auto input = ScoreInput::Open(dir_.path(name), mapping);
    EXPECT_TRUE(input.ok()) << input.status();
    return *std::move(input);
  }
  std::string Refusal(const std::string& name, const std::string& text, const ScoreMapping& mapping = {}) {
    WriteAll(dir_.path(name), text);
    return std::string(ScoreInput::Open(dir_.path(name), mapping).status().message());
  }
  static ScoreMapping Mapping(const char* columns, const char* constants = "") {
    ScoreMapping mapping;
    EXPECT_TRUE(AddScoreColumns(columns, &mapping).ok());
    EXPECT_TRUE(AddScoreConstants(constants, &mapping).ok());
    return mapping;
  }

  TempDir dir_;
};

TEST_F(ScoreFilesTest, CsvBecomesColumns) {
  ScoreMapping mapping = Mapping("user=uid,time=ts,request_numbers.age=years", "scene=feed,candidate_texts.source=ann");
  mapping.time_unit_us = 1'000'000;
  mapping.keep = {"label"};
  ScoreInput input = Open("rows.csv",
                          "# a comment\nuid,item,ts,years,label,as_of,other\n"
                          "anna,7,100,33.5,1,50.25,x\n"
                          "\"a \"\"b\"\"\",sku-1,100.5,,\"a,b\",,y\n",
                          mapping);
  const auto chunk = input.Read(10);
  ASSERT_EQ(chunk->rows(), 2u);
  EXPECT_THAT(chunk->Bad({}), testing::IsEmpty());
  const BatchRows& rows = chunk->Columns();
  EXPECT_THAT(rows.users, ElementsAre("anna", "a \"b\""));
  EXPECT_THAT(rows.items.values, ElementsAre(7u, IdFromText("sku-1")));
  EXPECT_THAT(rows.times_us.values, ElementsAre(100'000'000, 100'500'000));
  EXPECT_TRUE(rows.as_of_us.has(0));
  EXPECT_EQ(rows.as_of_us.values[0], 50'250'000);
  EXPECT_FALSE(rows.as_of_us.has(1));
  EXPECT_THAT(rows.scenes, ElementsAre("feed", "feed"));
  ASSERT_EQ(rows.request_numbers.size(), 1u);
  EXPECT_EQ(rows.request_numbers[0].name, "age");
  EXPECT_EQ(std::get<0>(rows.request_numbers[0].values)[0], 33.5);
  EXPECT_FALSE(rows.request_numbers[0].valid[1]);
  EXPECT_THAT(rows.candidate_texts[0].values, ElementsAre("ann", "ann"));
  EXPECT_EQ(chunk->keep(1)[0].text, "a,b");
  EXPECT_THAT(input.unused(), ElementsAre("other"));
  EXPECT_TRUE(input.AtEnd());
}

TEST_F(ScoreFilesTest, JsonLinesBecomeTheSameColumns) {
  ScoreMapping mapping;
  mapping.keep = {"label"};
  ScoreInput input =
      Open("rows.jsonl",
           R"({"user":"anna","item_id":7,"time_us":100,"label":{"a":1},"noise":1}
)"
           "\n"
           R"({"user":42,"item":"sku-1","time":"200","candidate_numbers.bid":0.5,"request_texts":{"device":"phone"}}
{"user":"bob","item_id":9,"time_us":300,"request_texts.device":null,"label":"x"}
)",
           mapping);
  const auto chunk = input.Read(10);
  EXPECT_THAT(chunk->Bad({}), testing::IsEmpty());
  const BatchRows& rows = chunk->Columns();
  EXPECT_THAT(rows.users, ElementsAre("anna", "42", "bob"));
  EXPECT_THAT(rows.items.values, ElementsAre(7u, IdFromText("sku-1"), 9u));
  EXPECT_THAT(rows.times_us.values, ElementsAre(100, 200, 300));
  ASSERT_EQ(rows.candidate_numbers.size(), 1u);
  EXPECT_FALSE(rows.candidate_numbers[0].valid[0]);
  EXPECT_TRUE(rows.candidate_numbers[0].valid[1]);
  EXPECT_FALSE(rows.candidate_numbers[0].valid[2]);
  EXPECT_THAT(rows.request_texts[0].values, ElementsAre("", "phone", ""));
  EXPECT_THAT(input.unused(), ElementsAre("noise"));
}

// line, field and reason of every bad row of a file whose good rows are of user "ok".
std::string Problems(const ScoreChunk& chunk) {
  std::string all;
  for (const BadScoreRow& bad : chunk.Bad({})) {
    all += std::to_string(bad.row) + "/" + std::to_string(bad.line) + " " + bad.column + ": " + bad.reason + "\n";
  }
  return all;
}

TEST_F(ScoreFilesTest, BadCsvRowsAreReportedWithLineAndField) {
  ScoreInput input = Open("rows.csv",
                          "user,item_id,time_us,candidate_numbers.bid,as_of_us\n"
                          "ok,1,1,,\n"
                          "a,2,x,,\n"
                          "a,3,1,two,\n"
                          "a,4,1,1\n"
                          "\"a\nb\",5,1,,\n"
                          "a,6,99999999999999999999,,\n"
                          "\"a\"b,7,1,,\n"
                          "a,8,1,1,never\n"
                          "ok,9,1,1,1\n");
  const auto chunk = input.Read(100);
  EXPECT_EQ(chunk->rows(), 9u);
  EXPECT_THAT(chunk->Columns().users, ElementsAre("ok", "a\nb", "ok"));
  EXPECT_EQ(chunk->RowOf(2), 8u);
  EXPECT_EQ(Problems(*chunk),
            "1/3 time_us: 'x', a number needed\n"
            "2/4 candidate_numbers.bid: 'two', a number needed\n"
            "3/5 : 4 fields, the header has 5\n"
            "5/8 time_us: '99999999999999999999', out of range\n"
            "6/9 : field 1: quotes do not end where the field ends\n"
            "7/10 as_of_us: 'never', a number needed\n");
}

TEST_F(ScoreFilesTest, BadJsonRowsAreReportedWithLineAndField) {
  std::string many = R"({"user":"a","item_id":1,"time_us":1,"request_numbers":{)";
  for (int i = 0; i < 257; ++i) many += "\"f" + std::to_string(i) + "\":1,";
  many.back() = '}';
  ScoreInput input = Open("rows.jsonl",
                          R"({"user":"ok","item_id":1,"time_us":1}
{"user":1.5,"item_id":1,"time_us":1}
{"user":"a","item_id":-1,"time_us":1}
{"user":"a","item_id":[1],"time_us":1}
{"user":"a","item_id":1,"time_us":true}
{"user":"a","item_id":1,"time_us":1,"namespace":7}
{"user":"a","item_id":1,"time_us":1,"request_numbers.age":"old"}
{"user":"a","item_id":1,"time_us":1,"request_texts.device":1}
{"user":"a","user_id":"b","item_id":1,"time_us":1}
{"user":"a","item_id":1,"time_us":1
[1]
{"user":"a","item_id":1,"time_us":1,"request_texts.age":"x"}
)" + many + "}\n" + R"({"user":"ok","item_id":1,"time_us":1,"candidate_texts.x":"y"})");
  const auto chunk = input.Read(100);
  EXPECT_EQ(chunk->rows(), 14u);
  EXPECT_THAT(chunk->Columns().users, ElementsAre("ok", "ok"));
  for (const NumberFeature& feature : chunk->Columns().request_numbers) {
    EXPECT_FALSE(feature.valid[0] || feature.valid[1]) << feature.name;
  }
  const std::string problems = Problems(*chunk);
  for (const char* expected :
       {"1/2 user: text or a whole number from 0 needed",
        "2/3 item_id: '-1', text or a whole number up to 2^64-1 needed",
        "3/4 item_id: '[1]', text or a whole number up to 2^64-1 needed", "4/5 time_us: a number needed",
        "5/6 namespace: text needed", "6/7 request_numbers.age: 'old', a number needed",
        "7/8 request_texts.device: text needed", "8/9 : two keys for the field user",
        "9/10 : ", "10/11 : ", "11/12 : request_texts.age: there is request_numbers.age already",
        "12/13 : request_numbers.f", "more than 256 features"}) {
    EXPECT_THAT(problems, HasSubstr(expected));
  }
}

TEST_F(ScoreFilesTest, HeadersAndMappingsThatDoNotFitAreRefused) {
  EXPECT_THAT(Refusal("rows.txt", ""), HasSubstr("a name ending in .csv"));
  EXPECT_THAT(Refusal("rows.csv", ""), HasSubstr("no header row"));
  EXPECT_THAT(Refusal("rows.csv", "user,item_id\n"), HasSubstr("no column for the field time_us (map it)"));
  EXPECT_THAT(Refusal("rows.csv", "user,item_id,time_us\n", Mapping("scene=page")), HasSubstr("no column 'page'"));
  EXPECT_THAT(Refusal("rows.csv", "user,user_id,item_id,time_us\n"), HasSubstr("two columns for one field"));
  ScoreMapping keep;
  keep.keep = {"label"};
  EXPECT_THAT(Refusal("rows.csv", "user,item_id,time_us\n", keep), HasSubstr("no column 'label' to keep"));
  EXPECT_THAT(Refusal("rows.csv", "user,item_id,time_us,request_texts." + std::string(65, 'n') + "\n"),
              HasSubstr("a name of 65 bytes, the limit is 64"));
  ScoreMapping mapping;
  EXPECT_EQ(AddScoreColumns("usr=u", &mapping).message(), "'usr' is no field of batch scoring");
  EXPECT_EQ(AddScoreColumns("user", &mapping).message(), "'user': field=column needed");
  EXPECT_EQ(AddScoreColumns("request_texts.=x", &mapping).message(), "'request_texts.' is no field of batch scoring");
}

TEST_F(ScoreFilesTest, SkippedRowsAreThoseThatWouldHaveBeenRead) {
  std::string csv = "user,item_id,time_us\n", lines;
  for (int i = 0; i < 50; ++i) {
    const std::string name = i % 7 == 0 ? "\"a\n" + std::to_string(i) + "\"" : std::to_string(i);
    csv += name + "," + (i % 11 == 0 ? "1" : std::to_string(i) + ",1") + "\n" + (i % 5 == 0 ? "\n" : "");
    lines += (i % 9 == 0 ? "nonsense" : R"({"user":")" + std::to_string(i) + R"(","item_id":1,"time_us":1})") +
             (i % 5 == 0 ? "\n\n" : "\n");
  }
  for (const auto& [name, text] : {std::pair("rows.csv", csv), std::pair("rows.jsonl", lines)}) {
    ScoreInput whole = Open(name, text), skipping = Open(name, text);
    const auto all = whole.Read(1000);
    EXPECT_EQ(all->rows(), 50u);
    EXPECT_EQ(skipping.Skip(17), 17u);
    const auto rest = skipping.Read(1000);
    EXPECT_EQ(rest->rows(), 33u);
    EXPECT_EQ(rest->first_row(), 17u);
    const size_t before = all->Columns().rows - rest->Columns().rows;
    for (size_t i = 0; i < rest->Columns().rows; ++i) {
      EXPECT_EQ(rest->RowOf(i), all->RowOf(before + i));
      EXPECT_EQ(rest->Columns().users[i], all->Columns().users[before + i]);
    }
    EXPECT_EQ(skipping.Skip(1), 0u);
    EXPECT_TRUE(skipping.AtEnd());
  }
}

TEST_F(ScoreFilesTest, ScoresReadBackToTheSameBits) {
  ScoreMapping mapping;
  mapping.keep = {"label"};
  ScoreInput input =
      Open("rows.jsonl",
           "{\"user\":\"a \\\"b\\\", c\",\"item_id\":7,\"time_us\":1,\"label\":[1,2]}\n"
           "{\"user\":5,\"item_id\":\"x\",\"time_us\":2}\n{\"user\":\"bad\",\"item_id\":1,\"time_us\":3}\n",
           mapping);
  const auto chunk = input.Read(10);
  BatchScores scores;
  const float tricky[] = {0.1f, 1.17549435e-38f, 0};
  scores.scores = {{"click", {tricky[0], 0.5f, 0}, {-3.0000002f, tricky[1], 0}}};
  scores.flags = {kUnknownItem, kUnknownUser, kRowBad};
  scores.rows_visible = {3, 0, 0};
  const ScoreFormat csv(true, {"click"}, {"label"}), lines(false, {"click"}, {"label"});
  EXPECT_EQ(csv.Rows(*chunk, scores),
            "row,user,item_id,time_us,calibrated.click,raw_logit.click,rows_visible,unknown_user,unknown_item,label\n"
            "0,\"a \"\"b\"\", c\",7,1,0.1,-3.0000002,3,0,1,\"[1,2]\"\n"
            "1,5,x,2,0.5,1.1754944e-38,0,1,0,\n");
  const std::string text = lines.Rows(*chunk, scores);
  const json first = json::parse(text.substr(0, text.find('\n'))),
             second = json::parse(text.substr(text.find('\n') + 1));
  EXPECT_EQ(first["user"], "a \"b\", c");
  EXPECT_EQ(first["label"], json::parse("[1,2]"));
  EXPECT_EQ(first["raw_logit.click"].get<float>(), -3.0000002f);
  EXPECT_EQ(second["user"], 5);
  EXPECT_EQ(second["raw_logit.click"].get<float>(), tricky[1]);
  EXPECT_EQ(second["label"], nullptr);
  EXPECT_TRUE(second["unknown_user"]);
  const auto bad = chunk->Bad({{2, "user", "not, liked"}});
  EXPECT_EQ(csv.BadRows(bad),
            "row,line,column,reason,text\n"
            "2,3,user,\"not, liked\",\"{\"\"user\"\":\"\"bad\"\",\"\"item_id\"\":1,\"\"time_us\"\":3}\"\n");
  EXPECT_EQ(json::parse(lines.BadRows(bad))["line"], 3);
}

TEST_F(ScoreFilesTest, AFolderBelongsToOneRun) {
  const std::string folder = dir_.path("out");
  const json manifest = {{"input", {{"bytes", 5}, {"xxh3_64", "ab"}}}, {"parameters", {{"history_rows", "7"}}}};
  const auto refusal = [&folder](const json& other, bool resume) {
    return std::string(ScoreParts::Open(folder, other, ".csv", resume).status().message());
  };
  {
    auto parts = ScoreParts::Open(folder, manifest, ".csv", false);
    ASSERT_TRUE(parts.ok()) << parts.status();
    EXPECT_THAT(refusal(manifest, true), HasSubstr("another run is writing here"));
    EXPECT_FALSE(parts->Find(0).has_value());
    ASSERT_TRUE(parts->Write(0, "head\na\n", "", {2, 2, 0, 1, 0}).ok());
    ASSERT_TRUE(parts->Write(1, "head\nb\n", "bad\nx\n", {2, 1, 1, 0, 1}).ok());
    EXPECT_EQ(parts->Find(1)->bad, 1u);
    EXPECT_EQ(parts->Find(0)->unknown_users, 1u);
  }
  EXPECT_THAT(refusal(manifest, false), HasSubstr("holds a run already; go on with it (--resume)"));
  json other = manifest;
  other["input"]["xxh3_64"] = "ac";
  EXPECT_THAT(refusal(other, true), HasSubstr("cannot go on: input/xxh3_64 was \"ab\", is now \"ac\""));
  other = manifest;
  other["parameters"]["threads"] = "1";
  EXPECT_THAT(refusal(other, true), HasSubstr("parameters/threads was absent, is now \"1\""));
  WriteAll(dir_.path("out/part-00002.csv.tmp"), "half a pa");
  auto parts = ScoreParts::Open(folder, manifest, ".csv", true);
  ASSERT_TRUE(parts.ok()) << parts.status();
  EXPECT_FALSE(std::filesystem::exists(dir_.path("out/part-00002.csv.tmp")));
  EXPECT_FALSE(parts->Find(2).has_value());
  std::filesystem::remove(dir_.path("out/.part-00000.json"));
  EXPECT_FALSE(parts->Find(0).has_value()) << "a part of which nothing is known is written again";
  ASSERT_TRUE(parts->Succeed({{"rows", 4}}).ok());
  const std::string file = dir_.path("scores.csv");
  ASSERT_TRUE(parts->Join(2, file, 5, 4).ok());
  EXPECT_EQ(ReadAll(file), "head\na\nb\n");
  EXPECT_EQ(ReadAll(file + ".bad-rows.csv"), "bad\nx\n");
  EXPECT_FALSE(std::filesystem::exists(folder));
  WriteAll(dir_.path("mine/notes"), "x");
  EXPECT_THAT(std::string(ScoreParts::Open(dir_.path("mine"), manifest, ".csv", true).status().message()),
              HasSubstr("is not empty and holds no scoring run"));
}

}  // namespace
}  // namespace backstory
