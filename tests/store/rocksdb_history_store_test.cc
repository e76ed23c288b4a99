// Runs the contract of HistoryStore on the RocksDB store.
#include "store/rocksdb_history_store.h"

#include "tests/store/history_store_contract.h"

namespace backstory {
namespace {

std::unique_ptr<HistoryStore> OpenIn(const std::string& directory) { return MustOpen(directory); }

INSTANTIATE_TEST_SUITE_P(RocksDb, HistoryStoreContract, testing::Values(&OpenIn));

}  // namespace
}  // namespace backstory
