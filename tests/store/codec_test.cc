// The value codecs: every variant survives a round trip, damaged bytes are refused without harm.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>

#include "gmock/gmock.h"
#include "store/block_rows.h"
#include "store/cell_codec.h"
#include "store/column_codec.h"
#include "store/event_codec.h"
#include "store/integrity.h"
#include "store/item_codec.h"
#include "store/keys.h"
#include "store/user_record.h"
#include "tests/fuzz/store_fuzz.h"
#include "tests/store/store_test_util.h"

namespace backstory {
namespace {

std::string RoundTrip(const std::vector<uint64_t>& values) {
  std::string bytes;
  EncodeColumn(values, &bytes);
  std::vector<uint64_t> decoded(values.size());
  ByteReader reader(bytes);
  EXPECT_TRUE(DecodeColumn(&reader, decoded));
  EXPECT_EQ(reader.remaining(), 0u);
  EXPECT_EQ(decoded, values);
  for (size_t cut = 0; cut < bytes.size(); cut += bytes.size() / 50 + 1) {  // too short is never taken for whole
    ByteReader shorter(std::string_view(bytes).substr(0, cut));
    EXPECT_FALSE(DecodeColumn(&shorter, decoded)) << cut << " of " << bytes.size();
  }
  return bytes;
}

TEST(ColumnCodec, EveryModeIsChosenAndSurvives) {
  const auto mode = [](const std::vector<uint64_t>& values) { return static_cast<ColumnMode>(RoundTrip(values)[0]); };
  constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();
  EXPECT_EQ(mode({7, 7, 7}), ColumnMode::kConstant);
  EXPECT_EQ(mode({kMax}), ColumnMode::kConstant);
  std::mt19937_64 random(1);
  std::vector<uint64_t> small, times, walk, raw, few;
  uint64_t time = kNow, at = uint64_t{1} << 60;
  for (int i = 0; i < 1000; ++i) {
    small.push_back(random() % 100'000);
    times.push_back(time += random() % 60 * 1'000'000);
    walk.push_back(at += random() % 3 - 1);
    raw.push_back(random());
    few.push_back(random() % 2 == 0 ? 5 : kMax);
  }
  EXPECT_EQ(mode(small), ColumnMode::kPacked);
  EXPECT_EQ(mode(times), ColumnMode::kAscending);
  EXPECT_LE(RoundTrip(times).size(), 1010u) << "whole seconds cost a byte a step";
  EXPECT_EQ(mode(raw), ColumnMode::kRaw);
  EXPECT_EQ(mode(few), ColumnMode::kDictionary);
  std::vector<uint64_t> jumps;
  for (int i = 0; i < 200; ++i)
    jumps.push_back((i % 100 == 0 ? random() : jumps.back()) + random() % 60 - (i % 100 != 0) * 30);
  EXPECT_EQ(mode(jumps), ColumnMode::kDelta);
}

TEST(ColumnCodec, EveryWidth) {
  std::mt19937_64 random(TestSeed());
  for (int width = 0; width <= 64; ++width) {
    for (const size_t rows : {1, 2, 7, 8, 9, 63, 300}) {
      std::vector<uint64_t> values(rows);
      for (uint64_t& v : values) v = width == 0 ? 3 : random() >> (64 - width);
      RoundTrip(values);
    }
  }
}

std::vector<StoredEvent> RandomBlock(std::mt19937_64* random, size_t rows) {
  std::vector<StoredEvent> events;
  for (size_t i = 0; i < rows; ++i) {
    StoredEvent& stored = events.emplace_back();
    stored.event = RandomEvent(random, ~uint64_t{0}, 0, INT64_MAX);
    stored.event.tombstone = (*random)() % 10 == 0;
    stored.event.ingest_time_us = static_cast<int64_t>((*random)() >> 1);
    stored.seq = (*random)() % 1000;
    if ((*random)() % 3 == 0) stored.event.exposure_id = events[(*random)() % events.size()].event.event_id;
  }
  std::sort(events.begin(), events.end(),
            [](const StoredEvent& a, const StoredEvent& b) { return CanonicalLess(a.event, b.event); });
  return events;
}

TEST(EventCodec, BlocksSurvive) {
  std::mt19937_64 random(TestSeed());
  for (const size_t rows : {size_t{1}, size_t{2}, size_t{100}, kBlockRowsMax}) {
    const std::vector<StoredEvent> events = RandomBlock(&random, rows);
    const std::string block = EncodeBlock(events);
    std::vector<StoredEvent> decoded;
    ASSERT_TRUE(DecodeBlock(block, &decoded));
    ASSERT_EQ(decoded.size(), rows);
    std::vector<uint64_t> ids;
    std::vector<int64_t> times;
    ASSERT_TRUE(DecodeBlockIds(block, &ids, &times));
    for (size_t i = 0; i < rows; ++i) {
      EXPECT_EQ(decoded[i].event, events[i].event);
      EXPECT_EQ(decoded[i].seq, events[i].seq);
      EXPECT_EQ(ids[i], events[i].event.event_id);
      EXPECT_EQ(times[i], events[i].event.time_us);
    }
    BlockHeader header;
    ASSERT_TRUE(DecodeBlockHeader(block, &header));
    EXPECT_EQ(header.rows, rows);
  }
}

// What a reader selects is what a loop over all events would keep; of that, the first may be left out.
TEST(BlockRows, SelectAndSkip) {
  std::mt19937_64 random(TestSeed());
  BlockRows rows;  // reused: nothing of one block may show in the next
  for (int trial = 0; trial < 40; ++trial) {
    std::vector<StoredEvent> stored = RandomBlock(&random, 1 + random() % 300);
    for (StoredEvent& s : stored) s.event.tombstone = trial % 2 == 0 && random() % 5 == 0;
    const std::string block = EncodeBlock(stored);
    ASSERT_TRUE(rows.Decode(block));
    BlockFilter filter;
    if (trial % 3 != 0) {
      filter.as_of = {stored[random() % stored.size()].event.time_us, stored[0].event.ingest_time_us};
      filter.from_us = stored[random() % stored.size()].event.time_us / 2;
      filter.include_tombstones = random() % 2 == 0;
    }
    std::vector<Event> expected;
    for (const StoredEvent& s : stored) {
      const Event& e = s.event;
      const bool known =
          filter.as_of.known_by_us == AsOf::kAnyIngestTime || e.ingest_time_us <= filter.as_of.known_by_us;
      if (e.time_us >= filter.from_us && e.time_us < filter.as_of.event_time_us && known &&
          (!e.tombstone || filter.include_tombstones)) {
        expected.push_back(e);
      }
    }
    ASSERT_EQ(rows.Select(filter), expected.size());
    const size_t skip = random() % (expected.size() + 1);
    expected.erase(expected.begin(), expected.begin() + static_cast<std::ptrdiff_t>(skip));
    std::vector<Event> found;
    rows.AppendTo(skip, &found);
    EXPECT_EQ(found, expected);
  }
}

// Bytes of the first released format: a change here is a change of the format version.
TEST(EventCodec, FormatIsFrozen) {
  StoredEvent stored;
  stored.event = Rating(0x1122334455667788, kNow, 42, 4.5f);
  stored.event.scene = "home";
  stored.event.ingest_time_us = kNow + 1;
  stored.seq = 9;
  std::string hex;
  for (const char c : EncodeBlock({&stored, 1})) {
    char two[3];
    std::snprintf(two, sizeof(two), "%02x", static_cast<unsigned>(static_cast<uint8_t>(c)));
    hex += two;
  }
  EXPECT_EQ(
      hex,
      "01010109008080f9c0c1c482030088ef99abc5e88c91110009008180f9c0c1c4820300020000002a000000000004008080c084040000"
      "0000000000000104686f6d65");
  EXPECT_EQ(EventHash(stored.event), 6209168414797440413u);
}

TEST(EventCodec, HashCoversEveryFieldButIngestTime) {
  const Event base = Rating(1, 2, 3, 4);
  std::vector<Event> changed(14, base);
  changed[0].kind = EventKind::kExposure;
  changed[1].event_id = 9;
  changed[2].revision = 9;
  changed[3].tombstone = true;
  changed[4].time_us = 9;
  changed[5].item_id = 9;
  changed[6].request_id = 9;
  changed[7].position = 9;
  changed[8].scene = "x";
  changed[9].action = ActionType::kClick;
  changed[10].value = 9;
  changed[11].exposure_id = 9;
  changed[12].context = {{"a", "b"}};
  changed[13].embedding_ids = {9};
  for (size_t i = 0; i < changed.size(); ++i) EXPECT_NE(EventHash(changed[i]), EventHash(base)) << i;
  Event later = base;
  later.ingest_time_us = 5;
  EXPECT_EQ(EventHash(later), EventHash(base));
}

TEST(CellCodec, RoundTripAndSums) {
  std::vector<Cell> cells = {{8192, 0, 5}, {8192, 80, -1}, {8192 + 8191, 0xFFFFF, 1'000'000}};
  std::vector<Cell> decoded;
  ASSERT_TRUE(DecodeCells(EncodeCells(cells, 8192), 8192, &decoded));
  EXPECT_EQ(decoded, cells);
  cells.push_back({8192, 80, 1});
  NormaliseCells(&cells);
  EXPECT_EQ(cells.size(), 2u) << "a zero count is no cell";
  EXPECT_FALSE(DecodeCells(EncodeCells({{9000, 1, 1}}, 0), 0, &decoded)) << "outside its record";
}

TEST(UserRecord, RoundTrip) {
  UserRecord record;
  record.user = {"shop", std::string("\0\xff", 2)};
  record.head = {.seq = 1, .epoch = 2, .hash = ~uint64_t{0}, .events = 3, .newest_us = -1, .first_index = 4096};
  record.stored = 4;
  record.epoch_seq = 5;
  record.retain_seq = 6;
  record.merged_seq = 7;
  record.tail_events = 8;
  record.tail_records = 9;
  record.floor = {10, 11};
  record.refuse_until_us = 12;
  record.aliases = {"a", ""};
  UserRecord decoded;
  ASSERT_TRUE(DecodeUserRecord(EncodeUserRecord(record), &decoded));
  EXPECT_EQ(EncodeUserRecord(decoded), EncodeUserRecord(record));
  EXPECT_EQ(decoded.head, record.head);
  EXPECT_EQ(decoded.floor, record.floor);
}

TEST(ItemCodec, RoundTrip) {
  Item item;
  item.item_id = 0;
  item.categories = {"Comedy", ""};
  item.sid = {1, UINT32_MAX};
  item.year = -5;
  item.title = "Tïtle";
  item.text = std::string(8192, 't');
  item.numbers = {{"price", 1.5}};
  item.strings = {{"brand", "b"}};
  Item decoded;
  ASSERT_TRUE(DecodeItem(EncodeItem(item), &decoded));
  EXPECT_EQ(decoded, item);
  EXPECT_EQ(EncodeItem(item)[0], 1) << "without an embedding, items are stored as they always were";
  item.embedding = {1.5f, -0.0f, 3.4e38f};
  const std::string stored = EncodeItem(item);
  EXPECT_EQ(stored[0], 2);
  decoded = {};
  ASSERT_TRUE(DecodeItem(stored, &decoded));
  EXPECT_EQ(decoded, item);
  for (size_t cut = 1; cut < 14; ++cut) {
    Item damaged;
    EXPECT_FALSE(DecodeItem(std::string_view(stored).substr(0, stored.size() - cut), &damaged)) << cut;
  }
  Item other = item;
  other.embedding[0] = 2;
  EXPECT_EQ(ImmutableDifference(item, other), "embedding");
  other.embedding.clear();
  EXPECT_EQ(ImmutableDifference(item, other), "");
  item.embedding_space = "clip";
  EXPECT_EQ(EncodeItem(item)[0], 3);
  decoded = {};
  ASSERT_TRUE(DecodeItem(EncodeItem(item), &decoded));
  EXPECT_EQ(decoded, item);
  other = item;
  other.embedding_space = "minilm";
  EXPECT_EQ(ImmutableDifference(item, other), "embedding_space");
  other.embedding_space.clear();
  EXPECT_EQ(ImmutableDifference(item, other), "");
  other.embedding_space.assign(65, 'x');
  EXPECT_EQ(WhyItemRejected(other), "embedding_space: 65 bytes, at most 64 allowed");
  other.embedding_space = "clip", other.embedding.clear();
  EXPECT_EQ(WhyItemRejected(other), "embedding_space: given without an embedding");
  item.embedding.resize(4097);
  EXPECT_EQ(WhyItemRejected(item), "embedding: 4097 numbers, at most 4096 allowed");
}

TEST(Slots, AreRedisClusters) {
  EXPECT_EQ(SlotOf("123456789"), 0x31C3 % kSlotCount);
  EXPECT_EQ(SlotOf("foo"), 12182);
  EXPECT_EQ(SlotOf("{user1000}.following"), SlotOf("user1000"));
  EXPECT_NE(SlotOf("foo{}{bar}"), SlotOf("bar")) << "an empty tag is no tag";
  EXPECT_EQ(SlotOf("foo{{bar}}zap"), SlotOf("{bar"));
  EXPECT_EQ(SlotOf("foo{bar}{zap}"), SlotOf("bar"));
}

TEST(Keys, SortByTimeThenIdAndHideTheUser) {
  const std::string secret(kSecretBytes, 's'), prefix = UserPrefix(secret, {"shop", "ann"});
  EXPECT_EQ(prefix.size(), kUserPrefixBytes);
  EXPECT_EQ(prefix.find("ann"), std::string::npos);
  EXPECT_LT(MakeBlockKey(prefix, {1, 9}), MakeBlockKey(prefix, {2, 0}));
  EXPECT_LT(MakeBlockKey(prefix, {255, 1}), MakeBlockKey(prefix, {256, 0}));
  EXPECT_EQ(ParseBlockKey(MakeBlockKey(prefix, {5, 6})), (BlockKey{5, 6}));
  EXPECT_NE(UserHash(secret, {"a", "bc"}), UserHash(secret, {"ab", "c"}));
}

// Every corpus file, and random damage to good values, goes through the fuzz targets.
TEST(FuzzCorpus, ReplaysWithoutHarm) {
  std::mt19937_64 random(TestSeed());
  int replayed = 0;
  const std::string corpus =
      std::string(std::getenv("BACKSTORY_SOURCE_DIR") != nullptr ? std::getenv("BACKSTORY_SOURCE_DIR") : ".") +
      "/tests/fuzz/corpus/";
  for (const auto& [name, target] :
       {std::pair{"history_value", &FuzzHistoryValue}, std::pair{"integrity", &FuzzIntegrity}}) {
    ASSERT_TRUE(std::filesystem::exists(corpus + name)) << corpus;
    for (const auto& file : std::filesystem::directory_iterator(corpus + name)) {
      std::ifstream in(file.path(), std::ios::binary);
      std::string bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
      target(bytes);
      ++replayed;
      for (int i = 0; i < 2000 && !bytes.empty(); ++i) {
        std::string damaged = bytes;
        for (uint64_t n = random() % 4 + 1; n > 0; --n)
          damaged[random() % damaged.size()] = static_cast<char>(random());
        if (random() % 4 == 0) damaged.resize(random() % damaged.size());
        target(damaged);
      }
    }
  }
  EXPECT_GE(replayed, 6);
}

}  // namespace
}  // namespace backstory
