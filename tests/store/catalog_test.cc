// The item catalog: all or nothing, immutable fields, limits, memory as durable.
#include "store/catalog.h"

#include <limits>

#include "gmock/gmock.h"
#include "tests/store/store_test_util.h"

namespace backstory {
namespace {

using testing::HasSubstr;

Item Movie(uint64_t id, std::string title = "title") {
  Item item;
  item.item_id = id;
  item.title = std::move(title);
  item.categories = {"Comedy"};
  item.year = 1995;
  return item;
}

class CatalogTest : public testing::Test {
 protected:
  void SetUp() override { Reopen(); }
  void Reopen() {
    store_ = Store();
    StoreOptions options;
    options.directory = dir_ / "store";
    auto opened = OpenStore(options);
    ASSERT_TRUE(opened.ok()) << opened.status();
    store_ = *std::move(opened);
  }
  absl::Status Upsert(const std::vector<Item>& items, bool allow = false) {
    return store_.catalog->Upsert("shop", items, allow);
  }

  TempDir dir_;
  Store store_;
};

TEST_F(CatalogTest, ItemsSurviveAndAreVisitedInIdOrder) {
  ASSERT_TRUE(Upsert({Movie(3), Movie(1), Movie(~uint64_t{0})}).ok());
  ASSERT_TRUE(store_.catalog->Upsert("other", std::vector<Item>{Movie(9)}).ok());
  Reopen();
  std::vector<uint64_t> ids;
  store_.catalog->ForEach("shop", [&](const Item& item) {
    ids.push_back(item.item_id);
    return ids.size() < 2;
  });
  EXPECT_THAT(ids, testing::ElementsAre(1, 3));
  EXPECT_EQ(*store_.catalog->Find("shop", 3), Movie(3));
  EXPECT_EQ(store_.catalog->Find("shop", 9), nullptr);
  EXPECT_EQ(store_.catalog->Size("shop"), 3u);
  EXPECT_EQ(store_.catalog->Size("nowhere"), 0u);
  EXPECT_EQ(store_.catalog->Version("shop"), 1u);
}

TEST_F(CatalogTest, ManyAreFoundAsOfOneMomentAndLiveAsLongAsTheirPin) {
  ASSERT_TRUE(Upsert({Movie(1, "one"), Movie(2, "two")}).ok());
  const uint64_t ids[] = {2, 9, 1, 2};
  std::vector<const Item*> before(4), after(4), nowhere(4, before[0]);
  auto first = store_.catalog->FindMany("shop", ids, before);
  for (int i = 1; i < 20; ++i) ASSERT_TRUE(Upsert({Movie(1, "one " + std::to_string(i))}).ok());
  auto second = store_.catalog->FindMany("shop", ids, after);
  EXPECT_EQ(before[1], nullptr);
  EXPECT_EQ(before[0], before[3]);
  EXPECT_EQ(before[2]->title, "one");
  EXPECT_EQ(after[2]->title, "one 19");
  EXPECT_EQ(before[0], after[0]) << "unchanged";
  first.reset();
  EXPECT_EQ(after[2]->title, "one 19");
  store_.catalog->FindMany("nowhere", ids, nowhere);
  EXPECT_THAT(nowhere, testing::Each(nullptr));
}

TEST_F(CatalogTest, VersionRisesOnlyWithAChange) {
  ASSERT_TRUE(Upsert({Movie(1)}).ok());
  ASSERT_TRUE(Upsert({Movie(1)}).ok());
  EXPECT_EQ(store_.catalog->Version("shop"), 1u);
  const auto held = store_.catalog->Find("shop", 1);
  ASSERT_TRUE(Upsert({Movie(1, "new title")}).ok()) << "a title may change";
  EXPECT_EQ(store_.catalog->Version("shop"), 2u);
  EXPECT_EQ(held->title, "title") << "a held item does not change";
  Reopen();
  EXPECT_EQ(store_.catalog->Version("shop"), 2u);
  EXPECT_EQ(store_.catalog->Find("shop", 1)->title, "new title");
}

TEST_F(CatalogTest, ImmutableFieldsNeedANewFeatureVersion) {
  ASSERT_TRUE(Upsert({Movie(1)}).ok());
  Item changed = Movie(1);
  changed.year = 1996;
  const absl::Status status = Upsert({Movie(2), changed});
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("item 1: year"));
  EXPECT_EQ(store_.catalog->Size("shop"), 1u) << "all or nothing";
  EXPECT_TRUE(Upsert({Movie(2), changed}, true).ok());
  EXPECT_EQ(store_.catalog->Find("shop", 1)->year, 1996);
}

TEST_F(CatalogTest, AnEmbeddingMayComeLaterAndStays) {
  ASSERT_TRUE(Upsert({Movie(1)}).ok());
  Item embedded = Movie(1);
  embedded.embedding = {1, 2, 3};
  ASSERT_TRUE(Upsert({embedded}).ok());
  ASSERT_TRUE(Upsert({Movie(1, "new title")}).ok()) << "without it, it stays";
  Reopen();
  EXPECT_EQ(store_.catalog->Find("shop", 1)->title, "new title");
  EXPECT_EQ(store_.catalog->Find("shop", 1)->embedding, embedded.embedding);
  embedded.embedding[2] = 4;
  EXPECT_THAT(std::string(Upsert({embedded}).message()), HasSubstr("item 1: embedding is immutable"));
}

TEST_F(CatalogTest, LimitsNameTheField) {
  const auto message = [this](const Item& item) { return std::string(Upsert({item}).message()); };
  Item item = Movie(1);
  item.title = std::string(512, 't');
  item.text = std::string(8192, 't');
  item.categories.assign(64, "c");
  EXPECT_EQ(message(item), "");
  item.item_id = 2;
  item.title += "t";
  EXPECT_THAT(message(item), HasSubstr("item 2: title: 513 bytes, at most 512"));
  item = Movie(3);
  item.text = std::string(8193, 't');
  EXPECT_THAT(message(item), HasSubstr("text"));
  item = Movie(4);
  item.categories.assign(65, "c");
  EXPECT_THAT(message(item), HasSubstr("categories"));
  item = Movie(5);
  item.numbers["price"] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(message(item), HasSubstr("'price' must be finite"));
  EXPECT_TRUE(absl::IsInvalidArgument(Upsert({Movie(6), Movie(6)}))) << "one id twice";
  EXPECT_TRUE(absl::IsInvalidArgument(store_.catalog->Upsert("Bad", std::vector<Item>{Movie(1)})));
  EXPECT_EQ(store_.catalog->Size("shop"), 1u);
}

// Half of a store may outlive the other.
TEST_F(CatalogTest, OutlivesTheHistory) {
  store_.history.reset();
  EXPECT_TRUE(Upsert({Movie(1)}).ok());
}

}  // namespace
}  // namespace backstory
