#include "models/tensor_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace backstory {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(TensorMap, GivesWhatWasAddedWithTheShapeThatIsAsked) {
  TensorMap map;
  ASSERT_TRUE(map.Add("w", {2, 3}, {1, 2, 3, 4, 5, 6}).ok());
  ASSERT_TRUE(map.Add("s", {}, {7}).ok());
  ASSERT_TRUE(map.Add("none", {0, 5}, {}).ok());
  const auto w = map.Get("w", {2, 3});
  ASSERT_TRUE(w.ok()) << w.status();
  EXPECT_THAT(w->values(), ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_EQ(map.Get("s", {})->values()[0], 7);
  EXPECT_EQ(map.Get("none", {0, 5})->size, 0u);
  EXPECT_THAT(map.Names(), ElementsAre("none", "s", "w"));
  EXPECT_EQ(map.ParameterCount(), 7u);
  EXPECT_FALSE(map.Contains("W"));
}

TEST(TensorMap, NamesTensorExpectedAndFound) {
  TensorMap map;
  ASSERT_TRUE(map.Add("w", {2, 3}, {1, 2, 3, 4, 5, 6}).ok());
  EXPECT_EQ(map.Get("v", {1}).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(map.Get("v", {1}).status().message()), HasSubstr("tensor v: missing, expected shape [1]"));
  EXPECT_THAT(std::string(map.Get("w", {3, 2}).status().message()),
              HasSubstr("tensor w: expected shape [3, 2], found [2, 3]"));
  EXPECT_FALSE(map.Get("w", {6}).ok());
  EXPECT_FALSE(map.Get("w", {2, 3, 1}).ok());
  EXPECT_THAT(std::string(map.Add("w", {1}, {0}).message()), HasSubstr("tensor w: added twice"));
  EXPECT_THAT(std::string(map.Add("x", {2}, {0}).message()), HasSubstr("tensor x: shape [2] does not hold 1 values"));
  EXPECT_FALSE(map.Add("x", {-1}, {0}).ok());
  EXPECT_FALSE(map.Add("x", {int64_t{1} << 32, int64_t{1} << 32}, {}).ok()) << "the product is 0 modulo 2^64";
}

TEST(TensorMap, CopiesShareMemoryAndKeepItAlive) {
  auto owner = std::make_shared<std::vector<float>>(4, 1.5f);
  const std::weak_ptr<std::vector<float>> alive = owner;
  std::optional<TensorMap> map(std::in_place);
  ASSERT_TRUE(map->AddShared("w", {4}, std::shared_ptr<const float>(owner, owner->data()), 4).ok());
  owner.reset();
  auto copy = std::make_unique<TensorMap>(*map);
  EXPECT_EQ(copy->Find("w")->data, map->Find("w")->data);
  map.reset();
  EXPECT_EQ(copy->Find("w")->data[3], 1.5f);
  copy.reset();
  EXPECT_TRUE(alive.expired());
}

}  // namespace
}  // namespace backstory
