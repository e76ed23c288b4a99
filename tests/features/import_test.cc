// Files to events and items: quoting, mappings, units, labels, and what is said of rows that cannot be read.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "features/event_rules.h"
#include "features/io/csv.h"
#include "features/io/event_json.h"
#include "features/io/import_file.h"
#include "tests/features/random_history.h"

namespace backstory {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::vector<std::string>> Records(std::string_view text) {
  std::vector<std::vector<std::string>> records;
  CsvReader csv({text, 1});
  while (csv.Next()) {
    if (!csv.error().empty()) {
      records.push_back({"error", std::to_string(csv.line())});
      continue;
    }
    records.emplace_back(csv.fields().begin(), csv.fields().end());
  }
  return records;
}

using Rows = std::vector<std::vector<std::string>>;

TEST(Csv, QuotesLineEndsAndEmptyFields) {
  EXPECT_EQ(Records("a,b\r\n1,\"x, \"\"y\"\"\"\n"), (Rows{{"a", "b"}, {"1", "x, \"y\""}}));
  EXPECT_EQ(Records("\"two\nlines\",2\n,\n\n3,"), (Rows{{"two\nlines", "2"}, {"", ""}, {"3", ""}}));
  EXPECT_EQ(Records("\"\",\"\"\"\""), (Rows{{"", "\""}}));
  EXPECT_EQ(Records("5\" disc,x\n"), (Rows{{"5\" disc", "x"}}));  // a quote inside a bare field is itself
}

TEST(Csv, ABadRecordDoesNotSwallowTheNext) {
  EXPECT_EQ(Records("\"a\"x,1\nb,2\n"), (Rows{{"error", "1"}, {"b", "2"}}));
  EXPECT_EQ(Records("ok,1\n\"open,2\nb,3\nc,4\n"), (Rows{{"ok", "1"}, {"error", "2"}, {"b", "3"}, {"c", "4"}}));
}

TEST(Csv, RoundTripsAnything) {
  std::mt19937_64 random(5);
  for (int round = 0; round < 300; ++round) {
    std::vector<std::string> wanted(1 + random() % 5);
    std::string text;
    for (size_t i = 0; i < wanted.size(); ++i) {
      for (size_t n = random() % 6; n > 0; --n) wanted[i].push_back("a,\"\n\r#b"[random() % 7]);
      if (i > 0) text.push_back(',');
      AppendCsvField(wanted[i], &text);
    }
    if (text.empty()) continue;  // one empty field is an empty line
    text += "\nlast,row\n";
    ASSERT_EQ(Records(text), (Rows{wanted, {"last", "row"}})) << text;
  }
}

TEST(SplitLines, AnyPieceSizeGivesTheSameRecordsAndLines) {
  std::string text;
  for (int i = 0; i < 200; ++i) text += std::to_string(i) + (i % 7 == 0 ? ",\"x\ny\"\n" : ",plain\n");
  const Rows wanted = Records(text);
  for (size_t bytes : {1, 10, 100, 1000, 100000}) {
    Rows found;
    std::vector<uint64_t> lines;
    for (const TextPiece& piece : SplitLines(text, 1, bytes, true)) {
      for (auto& record : Records(piece.text)) found.push_back(std::move(record));
      lines.push_back(piece.first_line + static_cast<uint64_t>(std::count(piece.text.begin(), piece.text.end(), '\n')));
    }
    EXPECT_EQ(found, wanted);
    EXPECT_EQ(lines.back(), 1 + static_cast<uint64_t>(std::count(text.begin(), text.end(), '\n')));
  }
}

class ImportTest : public ::testing::Test {
 protected:
  ImportTest() {
    directory_ =
        std::filesystem::temp_directory_path() / std::string("backstory_import_").append(std::to_string(::getpid()));
    std::filesystem::create_directories(directory_);
  }
  ~ImportTest() override { std::filesystem::remove_all(directory_); }
  std::string Write(const std::string& name, const std::string& text) {
    std::ofstream(directory_ / name) << text;
    return directory_ / name;
  }
  std::vector<ImportedEvent> Events(const std::string& name, const std::string& text,
                                    const ImportMapping& mapping = {}) {
    bad_.clear();
    auto rows = ReadEventFile(Write(name, text), mapping, &bad_);
    EXPECT_TRUE(rows.ok()) << rows.status();
    return rows.ok() ? *std::move(rows) : std::vector<ImportedEvent>{};
  }
  std::vector<Item> Items(const std::string& name, const std::string& text, const ImportMapping& mapping = {}) {
    bad_.clear();
    auto rows = ReadItemFile(Write(name, text), mapping, &bad_);
    EXPECT_TRUE(rows.ok()) << rows.status();
    return rows.ok() ? *std::move(rows) : std::vector<Item>{};
  }
  std::filesystem::path directory_;
  std::vector<BadRow> bad_;
};

TEST_F(ImportTest, OwnFormat) {
  const auto rows = Events("events.csv",
                           "# SYNTHETIC\nuser,kind,event_id,time_us,item_id,request_id,position,scene,action,value,"
                           "exposure_id,context.device,embedding_ids\n"
                           "u1,exposure,10,1000,abc,5,3,feed,,,,phone,1|2\n"
                           "u1,action,11,2000,abc,,,,dwell,12.5,10,,\n");
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_TRUE(bad_.empty());
  EXPECT_EQ(rows[0].user, "u1");
  EXPECT_EQ(rows[0].line, 3u);
  EXPECT_EQ(rows[0].event.kind, EventKind::kExposure);
  EXPECT_EQ(rows[0].event.item_id, IdFromText("abc"));
  EXPECT_EQ(rows[0].event.position, 3u);
  EXPECT_EQ(rows[0].event.scene, "feed");
  EXPECT_EQ(rows[0].event.context, (std::vector<ContextField>{{"device", "phone"}}));
  EXPECT_THAT(rows[0].event.embedding_ids, ElementsAre(1, 2));
  EXPECT_EQ(rows[1].event.action, ActionType::kDwell);
  EXPECT_EQ(rows[1].event.value, 12.5f);
  EXPECT_EQ(rows[1].event.exposure_id, 10u);
}

TEST_F(ImportTest, MovieLensPreset) {
  const ImportMappings preset = *PresetMappings("movielens");
  const auto rows = Events("ratings.csv", "userId,movieId,rating,timestamp\n1,318,4.5,964982703\n", preset.events);
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].event.time_us, 964'982'703'000'000);
  EXPECT_EQ(rows[0].event.action, ActionType::kRating);
  EXPECT_EQ(rows[0].event.value, 4.5f);
  EXPECT_EQ(rows[0].event.event_id, DerivedEventId(rows[0].event));
  const auto items = Items("movies.csv",
                           "movieId,title,genres\n318,\"Shawshank Redemption, The (1994)\",Crime|Drama\n"
                           "7,Untitled,(no genres listed)\n8,Year (199x),Drama\n9,\"Late (2001) \",Drama\n",
                           preset.items);
  ASSERT_EQ(items.size(), 4u);
  EXPECT_EQ(items[0].title, "Shawshank Redemption, The (1994)");
  EXPECT_EQ(items[0].year, 1994);
  EXPECT_THAT(items[0].categories, ElementsAre("Crime", "Drama"));
  EXPECT_TRUE(items[1].categories.empty());
  EXPECT_EQ(items[1].year, 0);
  EXPECT_EQ(items[2].year, 0);
  EXPECT_EQ(items[3].year, 2001);
}

TEST_F(ImportTest, MappedColumnsUnitsAndLabels) {
  ImportMapping mapping;
  ASSERT_TRUE(
      AddEventColumns("user=uid,time=ts,item=sku,label=clicked,label_time=clicked_at,context.dev=ua", &mapping).ok());
  ASSERT_TRUE(AddEventConstants("scene=home,label_action=like", &mapping).ok());
  mapping.time_unit_us = *TimeUnitUs("ms");
  const std::string csv = "uid,ts,sku,clicked,clicked_at,ua,more\nu,5,9,1,8,ios,x\nu,6.5,9,0,,,x\n";
  const auto rows = Events("log.csv", csv, mapping);
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[0].event.kind, EventKind::kExposure);
  EXPECT_EQ(rows[0].event.time_us, 5000);
  EXPECT_EQ(rows[0].event.scene, "home");
  EXPECT_EQ(rows[0].event.context[0].name, "dev");
  EXPECT_EQ(rows[1].event.kind, EventKind::kAction);
  EXPECT_EQ(rows[1].event.action, ActionType::kLike);
  EXPECT_EQ(rows[1].event.time_us, 8000);
  EXPECT_EQ(rows[1].event.exposure_id, rows[0].event.event_id);
  EXPECT_EQ(rows[2].event.time_us, 6500);
  const auto json =
      Events("log.jsonl",
             "{\"uid\":\"u\",\"ts\":5,\"sku\":9,\"clicked\":true,\"clicked_at\":8,\"ua\":\"ios\",\"more\":1}\n"
             "{\"uid\":\"u\",\"ts\":6.5,\"sku\":9}\n",
             mapping);
  ASSERT_EQ(json.size(), 3u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(json[i].event, rows[i].event) << i;
  auto file = ImportFile::Open(directory_ / "log.csv", ImportFile::Content::kEvents, mapping);
  ASSERT_TRUE(file.ok());
  EXPECT_THAT(file->unused_columns(), ElementsAre("more"));
}

TEST_F(ImportTest, BadRowsHaveLineAndReasonAndHarmNoOther) {
  const auto rows = Events("bad.csv",
                           "user,time_us,item_id,action,value,position\n"
                           "u,1,2,,,\n"
                           ",1,2,,,\n"
                           "u,x,2,,,\n"
                           "u,1\n"
                           "u,-5,2,,,\n"
                           "u,1,2,tap,,\n"
                           "u,1,2,click,nan,\n"
                           "u,1,2,click,1e99,\n"
                           "u,1,2,,,-1\n"
                           "u,99999999999999999999,2,,,\n"
                           "\"u\"x,1,2,,,\n"
                           "u,3,2,click,,\n");
  EXPECT_EQ(rows.size(), 2u);
  const std::vector<std::pair<uint64_t, std::string>> wanted = {
      {3, "user"},  {4, "time_us"}, {5, "2 fields"},  {6, "negative"}, {7, "'tap'"},
      {8, "value"}, {9, "value"},   {10, "position"}, {11, "time_us"}, {12, "quotes"}};
  ASSERT_EQ(bad_.size(), wanted.size());
  for (size_t i = 0; i < wanted.size(); ++i) {
    EXPECT_EQ(bad_[i].line, wanted[i].first);
    EXPECT_THAT(bad_[i].reason, HasSubstr(wanted[i].second));
  }
  EXPECT_EQ(bad_[1].text, "u,x,2,,,");
}

TEST_F(ImportTest, BadJsonLines) {
  const std::string deep = "{\"user\":\"u\",\"time_us\":1,\"item_id\":2,\"context\":" + std::string(5000, '[') + "\n";
  const auto rows = Events("bad.jsonl",
                           "{\"user\":\"u\",\"time_us\":1,\"item_id\":2}\nnot json\n{\"user\":\"u\",\"item_id\":2}\n"
                           "{\"user\":\"u\",\"time_us\":1,\"item_id\":2,\"itme\":3}\n"
                           "{\"user\":\"u\",\"time_us\":1,\"time_us\":2,\"item_id\":2}\n"
                           "{\"user\":[],\"time_us\":1,\"item_id\":2}\n\n[1]\n" +
                               deep +
                               "{\"user\":\"u\",\"time_us\":1,\"item_id\":2,\"scene\":\"\xFF\"}\n"
                               "{\"user\":\"v\",\"time_us\":7,\"item_id\":2}\n");
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[1].user, "v");
  std::vector<uint64_t> lines;
  for (const BadRow& row : bad_) lines.push_back(row.line);
  EXPECT_THAT(lines, ElementsAre(2, 3, 4, 5, 6, 8, 9, 10));
  EXPECT_THAT(bad_[1].reason, HasSubstr("time_us"));
  EXPECT_THAT(bad_[2].reason, HasSubstr("itme"));
  EXPECT_THAT(bad_[3].reason, HasSubstr("twice"));
}

TEST_F(ImportTest, FilesThatCannotBeOpened) {
  const auto message = [](const std::string& path, const ImportMapping& mapping = {}) {
    return std::string(ImportFile::Open(path, ImportFile::Content::kEvents, mapping).status().message());
  };
  EXPECT_THAT(message("/nowhere/events.csv"), HasSubstr("/nowhere/events.csv"));
  EXPECT_THAT(message(Write("events.txt", "user\n")), HasSubstr(".csv"));
  EXPECT_THAT(message(Write("empty.csv", "")), HasSubstr("no header"));
  EXPECT_THAT(message(Write("columns.csv", "a,b\n")), HasSubstr("user"));
  EXPECT_THAT(message(Write("twice.csv", "user,user,time_us,item_id\n")), HasSubstr("two columns"));
  ImportMapping mapping;
  ASSERT_TRUE(AddEventColumns("user=nobody", &mapping).ok());
  EXPECT_THAT(message(Write("mapped.csv", "user,time_us,item_id\n"), mapping), HasSubstr("'nobody'"));
  EXPECT_FALSE(AddEventColumns("usr=x", &mapping).ok());
  EXPECT_FALSE(AddEventColumns("user", &mapping).ok());
  EXPECT_FALSE(AddItemColumns("time=x", &mapping).ok());
  EXPECT_FALSE(PresetMappings("netflix").ok());
  EXPECT_FALSE(TimeUnitUs("h").ok());
}

// Damaged files: every record is either read or reported, nothing crashes, and untouched lines after the damage are
// read.
TEST_F(ImportTest, SurvivesDamage) {
  const std::string csv =
      "user,time_us,item_id,action,value,context.d,embedding_ids\n\"u,1\",1,2,click,3,\"a\"\"b\",1|2\nv,5,x,,,,\n";
  const std::string json =
      "{\"user\":\"u\",\"time_us\":1,\"item_id\":\"x\",\"context\":{\"a\":1.5},\"embedding_ids\":[1]}\n"
      "{\"user\":7,\"time_us\":2,\"item_id\":3,\"action\":\"dwell\",\"value\":1e3,\"context\":[[\"z\",true]]}\n";
  for (uint64_t seed = 1; seed <= 1500; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const bool is_csv = seed % 2 == 0;
    std::string text = is_csv ? csv : json;
    const size_t head = is_csv ? csv.find('\n') + 1 : 0;  // a damaged header is another test
    for (size_t n = 1 + random() % 4; n > 0; --n) {
      const size_t at = head + random() % (text.size() - head);
      switch (random() % 4) {
        case 0:
          text[at] = static_cast<char>(random());
          break;
        case 1:
          text.erase(at, 1 + random() % 5);
          break;
        case 2:
          text.insert(at, 1 + random() % 3, "\"\n,{}[]:\\0-e9"[random() % 14]);
          break;
        default:
          text.insert(at, text.substr(head + random() % (text.size() - head), random() % 20));
      }
    }
    const std::string name = is_csv ? "damaged.csv" : "damaged.jsonl";
    text += is_csv ? "\n\nlast,9,9,,,,\n" : "\n{\"user\":\"last\",\"time_us\":9,\"item_id\":9}\n";
    auto file = ImportFile::Open(Write(name, text), ImportFile::Content::kEvents, {});
    ASSERT_TRUE(file.ok()) << file.status();
    uint64_t records = 0, good = 0, bad = 0;
    bool last = false;
    for (size_t i = 0; i < file->pieces(); ++i) {
      const auto piece = file->ReadEvents(i);
      records += piece.records;
      good += piece.rows.size();
      bad += piece.bad.size();
      for (const ImportedEvent& row : piece.rows) {
        ASSERT_TRUE(ValidateEvent(row.event).ok());
        last = last || row.user == "last";
      }
    }
    EXPECT_EQ(records, good + bad);
    // Only a quote that the damage opened and the last line does not close may swallow the last line - as its own
    // error.
    EXPECT_TRUE(last || bad > 0);
  }
}

TEST(EventJson, RoundTrips) {
  std::mt19937_64 random(17);
  for (const Event& event : testing::MakeHistory(random, 300).events) {
    Event full = event;
    full.revision = static_cast<uint32_t>(random() % 3);
    full.tombstone = random() % 9 == 0;
    if (random() % 2 == 0) full.embedding_ids = {UINT64_MAX, 1};
    if (random() % 2 == 0) full.context = {{"z", "1"}, {"a", "\xC3\xA9"}};
    const auto back = EventFromJson(*ParseJsonObject(EventToJson(full).dump()));
    ASSERT_TRUE(back.ok()) << back.status();
    ASSERT_EQ(*back, full);
  }
}

TEST(ItemJson, RoundTrips) {
  Item item{.item_id = UINT64_MAX, .categories = {"a", "b"}, .sid = {1, 2}, .year = 1999, .title = "T", .text = "x\n"};
  item.numbers["price"] = 1.25;
  item.strings["brand"] = "acme";
  item.embedding = {0.5f, -2, 0.1f};
  item.embedding_space = "clip";
  const auto back = ItemFromJson(*ParseJsonObject(ItemToJson(item).dump()));
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(*back, item);
}

TEST(Ids, DecimalOrHashed) {
  EXPECT_EQ(IdFromText("0"), 0u);
  EXPECT_EQ(IdFromText("18446744073709551615"), UINT64_MAX);
  EXPECT_NE(IdFromText("18446744073709551616"), 0u);  // too big for a number: hashed
  EXPECT_NE(IdFromText("-1"), UINT64_MAX);
  EXPECT_EQ(ActionTypeName(*ActionTypeFromName("1000")), "1000");
  EXPECT_EQ(*ActionTypeFromName("share"), ActionType::kShare);
  for (const char* bad : {"", "0", "9", "999", "65536", "Click"}) EXPECT_FALSE(ActionTypeFromName(bad).ok()) << bad;
}

}  // namespace
}  // namespace backstory
