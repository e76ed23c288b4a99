#include "serving/engine/closest_word.h"

#include <gtest/gtest.h>

#include <vector>

namespace backstory {
namespace {

TEST(ClosestWord, IsTheNearestOneIfItIsNear) {
  const std::vector<std::string> words{"serve", "rank", "history_rows", "degrade_history_rows", "a"};
  EXPECT_EQ(ClosestWord("srve", words), "serve");
  EXPECT_EQ(ClosestWord("rnak", words), "rank");
  EXPECT_EQ(ClosestWord("histroy_row", words), "history_rows");
  EXPECT_EQ(ClosestWord("degraded_histories", words), "degrade_history_rows") << "a third of a long word may differ";
  EXPECT_EQ(ClosestWord("completely", words), "");
  EXPECT_EQ(ClosestWord("b", words), "") << "one letter for another is no resemblance";
  EXPECT_EQ(ClosestWord(std::string(65, 'x'), {{std::string(65, 'x')}}), "");
  EXPECT_EQ(ClosestWord("serve", {}), "");
}

}  // namespace
}  // namespace backstory
