// The contract of HistoryStore as tests, for any implementation: include, then instantiate with a factory.
//
//   INSTANTIATE_TEST_SUITE_P(RocksDb, HistoryStoreContract, testing::Values(&OpenIn));
#ifndef BACKSTORY_TESTS_STORE_HISTORY_STORE_CONTRACT_H_
#define BACKSTORY_TESTS_STORE_HISTORY_STORE_CONTRACT_H_

#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "store/history_store.h"
#include "tests/store/store_test_util.h"

namespace backstory {

// Opens the store kept in `directory`, made anew if the directory is empty. Called again after the store was destroyed,
// it finds what was acknowledged.
using StoreFactory = std::unique_ptr<HistoryStore> (*)(const std::string& directory);

class HistoryStoreContract : public testing::TestWithParam<StoreFactory> {
 protected:
  void SetUp() override { store_ = GetParam()(dir_ / "store"); }
  void Reopen() {
    store_.reset();
    store_ = GetParam()(dir_ / "store");
  }
  AppendResult Append(const std::vector<Event>& events, int64_t now_us = kNow) {
    return MustAppend(*store_, user_, events, now_us);
  }
  std::vector<Event> Events(const HistoryRange& range = {}) { return ReadEvents(*store_, user_, range); }
  UserHead Head() { return *store_->Head(user_); }

  TempDir dir_;
  UserKey user_{"shop", "ann"};
  std::unique_ptr<HistoryStore> store_;
};

}  // namespace backstory

#endif  // BACKSTORY_TESTS_STORE_HISTORY_STORE_CONTRACT_H_
