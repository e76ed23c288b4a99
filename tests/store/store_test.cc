// The RocksDB store beyond the contract: slots and owners, locks, read-only, privacy, a newer format.
#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "gmock/gmock.h"
#include "store/byte_io.h"
#include "store/integrity.h"
#include "store/keys.h"
#include "store/slot_stream.h"
#include "tests/store/store_test_util.h"

namespace backstory {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;

TEST(Open, SecondProcessIsRefusedByName) {
  TempDir dir;
  auto store = MustOpen(dir / "store");
  StoreOptions options;
  options.directory = dir / "store";
  const auto second = OpenHistoryStore(options);
  EXPECT_TRUE(absl::IsFailedPrecondition(second.status())) << second.status();
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(std::to_string(getpid())));
}

TEST(Open, AbsentStoreIsNotMadeUnlessAsked) {
  TempDir dir;
  StoreOptions options;
  options.directory = dir / "store";
  options.create_if_missing = false;
  EXPECT_TRUE(absl::IsNotFound(OpenHistoryStore(options).status()));
  EXPECT_FALSE(fs::exists(dir / "store"));
  options.create_if_missing = true;
  options.read_only = true;
  EXPECT_TRUE(absl::IsNotFound(OpenHistoryStore(options).status()));
}

TEST(Open, BadOptionsAreInvalidArgument) {
  StoreOptions options;
  EXPECT_TRUE(absl::IsInvalidArgument(OpenHistoryStore(options).status()));
  TempDir dir;
  options.directory = dir / "store";
  options.wal_flush_interval = std::chrono::milliseconds(0);
  EXPECT_TRUE(absl::IsInvalidArgument(OpenHistoryStore(options).status()));
}

TEST(Open, ReadOnlyReadsWithoutChangingAFile) {
  TempDir dir;
  MustAppend(*MustOpen(dir / "store"), {"shop", "ann"}, {Exposure(1, 5)});
  const auto listing = [&] {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(dir / "store")) {
      names.push_back(entry.path().filename().string() + " " + std::to_string(fs::file_size(entry.path())));
    }
    std::sort(names.begin(), names.end());
    return names;
  };
  const auto before = listing();
  StoreOptions options;
  options.directory = dir / "store";
  options.read_only = true;
  {
    auto store = MustOpen(options);
    auto another = MustOpen(options);
    EXPECT_EQ(ReadEvents(*another, {"shop", "ann"}).size(), 1u);
    EXPECT_TRUE(absl::IsFailedPrecondition(store->Append({"shop", "ann"}, {}, kNow, Durability::kSynced).status()));
    EXPECT_TRUE(absl::IsFailedPrecondition(store->Compact()));
    EXPECT_TRUE(store->GetStats().ok());
  }
  EXPECT_EQ(listing(), before);
}

TEST(Checkpoint, MakesItsFolderAndNeverCallsABadTargetDamage) {
  TempDir dir;
  StoreOptions options;
  options.directory = dir / "store";
  auto store = MustOpen(options);
  MustAppend(*store, {"shop", "ann"}, {Exposure(1, 5)});
  EXPECT_TRUE(store->Checkpoint(dir / "backups/2026/monday").ok());
  std::ofstream(dir / "file") << "not a folder";
  const absl::Status refused = store->Checkpoint(dir / "file/monday");
  EXPECT_FALSE(refused.ok());
  EXPECT_FALSE(absl::IsDataLoss(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("file")) << "names the folder";
}

// A caller who lost patience asks again while the first copy is still being made.
TEST(Checkpoint, TwoAtOnceOfOneNameMakeOne) {
  TempDir dir;
  auto store = MustOpen(dir / "store");
  const UserKey user{"shop", "ann"};
  for (uint64_t id = 1; id <= 20; ++id) {
    MustAppend(*store, user, {Exposure(id, static_cast<int64_t>(id))});
    const std::string target = dir / Numbered("copy", static_cast<int>(id));
    std::vector<absl::Status> made(4);
    std::vector<std::thread> threads;
    for (absl::Status& status : made) threads.emplace_back([&] { status = store->Checkpoint(target); });
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(std::count(made.begin(), made.end(), absl::OkStatus()), 1);
    for (const absl::Status& status : made) EXPECT_TRUE(status.ok() || absl::IsAlreadyExists(status)) << status;
    StoreOptions options;
    options.directory = target;
    options.read_only = true;
    const auto copy = OpenHistoryStore(options);
    ASSERT_TRUE(copy.ok()) << copy.status();
    EXPECT_EQ(ReadEvents(**copy, user).size(), id);
  }
}

TEST(Checkpoint, NeverTakesAnothersNameForItsOwnWork) {
  TempDir dir;
  auto store = MustOpen(dir / "store");
  MustAppend(*store, {"shop", "ann"}, {Exposure(1, 5)});
  ASSERT_TRUE(store->Checkpoint(dir / "monday.partial").ok());
  ASSERT_TRUE(store->Checkpoint(dir / "monday").ok());
  for (const char* name : {"monday.partial", "monday"}) {
    StoreOptions options;
    options.directory = dir / name;
    options.read_only = true;
    const auto copy = OpenHistoryStore(options);
    EXPECT_TRUE(copy.ok()) << copy.status();
  }
}

TEST(Slots, OfAnotherOwnerAreRefusedByName) {
  TempDir dir;
  StoreOptions options;
  options.directory = dir / "store";
  options.self = "a";
  options.slots = {{0, 8191, "a"}, {8192, 16000, "b"}};
  auto store = MustOpen(options);
  UserKey ours{"shop", "u0"}, theirs = ours, nobodys = ours;
  for (int i = 0; SlotOf(ours.user) > 8191; ++i) ours.user = Numbered("u", i);
  for (int i = 0; SlotOf(theirs.user) < 8192 || SlotOf(theirs.user) > 16000; ++i) theirs.user = Numbered("u", i);
  for (int i = 0; SlotOf(nobodys.user) <= 16000; ++i) nobodys.user = Numbered("u", i);
  MustAppend(*store, ours, {Exposure(1, 5)});
  const auto refused = [&](const absl::Status& status) {
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(Numbered("slot ", SlotOf(theirs.user))), HasSubstr("'b'")));
  };
  refused(store->Append(theirs, {}, kNow, Durability::kSynced).status());
  refused(store->Head(theirs).status());
  refused(store->Read(theirs, {}).status());
  refused(store->Tail(theirs, 0).status());
  refused(store->Delete(theirs, {.all = true}, kNow).status());
  refused(store->Merge(theirs, ours, kNow));
  refused(store->Merge(ours, theirs, kNow));
  refused(store->Retain(theirs, 0).status());
  refused(store->ExportSlot(SlotOf(theirs.user), [](std::string_view) { return absl::OkStatus(); }));
  EXPECT_THAT(std::string(store->Head(nobodys).status().message()), HasSubstr("no owner"));
  options.slots.push_back({100, 200, "c"});
  store.reset();
  EXPECT_TRUE(absl::IsInvalidArgument(OpenHistoryStore(options).status())) << "overlapping ranges";
  options.slots = {{0, kSlotCount, "a"}};
  EXPECT_TRUE(absl::IsInvalidArgument(OpenHistoryStore(options).status()));
}

// A slot of another store brings that store's secret along, while the own one names every user who is read.
TEST(Slots, AnImportDisturbsNoReader) {
  constexpr int kStores = 10, kImports = 40;  // the list of secrets grows by doubling: a few chances in each store
  const UserKey user{"shop", "ann"};
  for (int n = 0; n < kStores; ++n) {
    TempDir dir = TempDir::InMemory();
    auto store = MustOpen(dir / "store");
    MustAppend(*store, user, {Exposure(1, 5)});
    std::atomic<bool> stop{false};
    std::vector<std::thread> readers;
    for (int t = 0; t < 3; ++t) {
      readers.emplace_back([&] {
        while (!stop) {
          const auto head = store->Head(user);
          ASSERT_TRUE(head.ok()) << head.status();
          ASSERT_EQ(head->seq, 1u) << "a known user was not found";
        }
      });
    }
    for (int i = 0; i < kImports; ++i) {
      std::string begin, end, secret = Numbered("secret ", 100'000'000 + i);
      PutVarint(&begin, kStoreFormatVersion);
      PutVarint(&begin, 7);  // the slot
      PutVarint(&end, 2);
      secret.resize(kSecretBytes);
      std::string stream = MakeFrame(FrameKind::kBegin, begin) + MakeFrame(FrameKind::kSecrets, secret) +
                           MakeFrame(FrameKind::kEnd, end);
      const absl::Status imported =
          store->ImportSlot(7, [&]() -> absl::StatusOr<std::string> { return std::exchange(stream, ""); });
      ASSERT_TRUE(imported.ok()) << imported;
    }
    stop = true;
    for (std::thread& reader : readers) reader.join();
  }
}

// After delete and compaction no file of the store holds the user's name or what the events said.
TEST(Privacy, DeletedBytesAreGoneAfterCompaction) {
  TempDir dir;
  const UserKey user{"shop", "very-private-person"};
  const auto files_with = [&](const std::string& needle) {
    std::vector<std::string> found;
    for (const auto& entry : fs::recursive_directory_iterator(dir / "store")) {
      std::ifstream in(entry.path(), std::ios::binary);
      const std::string bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
      if (bytes.find(needle) != std::string::npos) found.push_back(entry.path().filename());
    }
    return found;
  };
  for (const bool whole_user : {false, true}) {
    auto store = MustOpen(dir / "store");
    for (uint64_t id = 1; id <= 300; ++id) {
      Event e = Exposure(id + (whole_user ? 1000 : 0), static_cast<int64_t>(id));
      e.scene = Numbered("secretscene", id % 3);
      MustAppend(*store, user, {e}, kNow, Durability::kSynced);
    }
    EXPECT_THAT(files_with("secretscene"), testing::Not(IsEmpty())) << "the test can see what it looks for";
    const DeleteSelector range{.from_us = 0, .until_us = 2 * kNow}, all{.all = true};
    ASSERT_TRUE(store->Delete(user, whole_user ? all : range, kNow).ok());
    ASSERT_TRUE(store->Compact().ok());
    EXPECT_THAT(files_with("secretscene"), IsEmpty());
    if (whole_user) {
      EXPECT_THAT(files_with("very-private-person"), IsEmpty());
    }
  }
}

// What a power loss may take back is bounded: buffered events are synced within wal_flush_interval. The watermark
// proves it.
TEST(Durability, BufferedEventsAreSyncedSoon) {
  TempDir dir;
  StoreOptions options;
  options.directory = dir / "store";
  options.wal_flush_interval = std::chrono::milliseconds(5);
  auto store = MustOpen(options);
  const uint64_t before = store->GetStats()->syncs;
  MustAppend(*store, {"shop", "ann"}, {Exposure(1, 5)}, kNow, Durability::kBuffered);
  while (store->GetStats()->syncs == before) std::this_thread::yield();  // the test's timeout is the failure
}

TEST(Durability, OneSyncServesManyCallers) {
  TempDir dir;
  auto store = MustOpen(dir / "store");
  std::vector<std::thread> threads;
  constexpr int kThreads = 8, kAppends = 50;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 1; i <= kAppends; ++i) {
        MustAppend(*store, {"shop", Numbered("u", t)}, {Exposure(i, 1)}, kNow, Durability::kSynced);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LT(store->GetStats()->commits, static_cast<uint64_t>(kThreads * kAppends)) << "commits were grouped";
}

}  // namespace
}  // namespace backstory
