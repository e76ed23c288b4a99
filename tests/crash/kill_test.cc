// kill -9 while a writer process appends, again and again: nothing acknowledged is lost, nothing is invented, nothing
// is there twice (goal R1, at the store; the server's own test is elsewhere).
//
// Method: the oracle is a file outside the store with a line before each batch is sent (pending) and one after its ack
// (committed). The process is killed at a random time, the store is checked and read in this process, and the next
// writer goes on. Buffer sizes change per run; compactions run all the time.
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <map>
#include <random>
#include <thread>

#include "gmock/gmock.h"
#include "store/maintenance.h"
#include "tests/crash/store_writer.h"
#include "tests/store/store_test_util.h"

extern char** environ;

namespace backstory {
namespace {

int Kills() {
  const char* given = std::getenv("BACKSTORY_KILLS");
  return given != nullptr ? std::atoi(given) : 40;
}

pid_t Spawn(const std::vector<std::string>& args) {
  std::vector<char*> argv;
  for (const std::string& arg : args) argv.push_back(const_cast<char*>(arg.c_str()));
  argv.push_back(nullptr);
  pid_t pid = -1;
  EXPECT_EQ(posix_spawn(&pid, argv[0], nullptr, nullptr, argv.data(), environ), 0) << argv[0];
  return pid;
}

struct Oracle {
  std::map<int, uint64_t> committed;  // batches acknowledged: 0 .. n-1
  std::map<int, uint64_t> pending;    // batches sent at least once: 0 .. n-1
};

Oracle ReadOracle(const std::string& path) {
  Oracle oracle;
  FILE* file = std::fopen(path.c_str(), "r");
  if (file == nullptr) return oracle;
  char mark;
  int user;
  unsigned long long n;
  while (std::fscanf(file, " %c %d %llu", &mark, &user, &n) == 3) {
    uint64_t& count = mark == 'C' ? oracle.committed[user] : oracle.pending[user];
    count = std::max<uint64_t>(count, n + 1);
  }
  std::fclose(file);
  return oracle;
}

// Everything committed is there, the one pending batch wholly or not at all, nothing else.
void CheckUser(HistoryStore& store, int user, const Oracle& oracle) {
  const uint64_t committed = oracle.committed.contains(user) ? oracle.committed.at(user) : 0;
  const uint64_t pending = oracle.pending.contains(user) ? oracle.pending.at(user) : 0;
  std::vector<Event> expected;
  for (uint64_t n = 0; n < committed; ++n) {
    for (const Event& e : AppendBatch(user, n)) expected.push_back(e);
  }
  std::vector<Event> found = Canonical(ReadEvents(store, FillUser(user)));
  if (found.size() > expected.size()) {
    for (uint64_t n = committed; n < pending; ++n) {
      for (const Event& e : AppendBatch(user, n)) expected.push_back(e);
    }
  }
  std::sort(expected.begin(), expected.end(), CanonicalLess);
  ASSERT_EQ(found.size(), expected.size()) << "user " << user << " committed " << committed << " pending " << pending;
  ASSERT_EQ(found, expected) << "user " << user;
}

TEST(Kill, NothingAcknowledgedIsLostInventedOrDoubled) {
  const uint64_t seed = TestSeed();
  std::mt19937_64 random(seed);
  TempDir dir = TempDir::InMemory();
  const std::string store = dir / "store", oracle_path = dir / "oracle";
  uint64_t acked = 0;
  const int kills = Kills();
  for (int kill_number = 0; kill_number < kills; ++kill_number) {
    const pid_t writer = Spawn({STORE_WRITER, "append", store, oracle_path, std::to_string(random())});
    ASSERT_GT(writer, 0);
    const uint64_t before = std::filesystem::exists(oracle_path) ? std::filesystem::file_size(oracle_path) : 0;
    std::this_thread::sleep_for(std::chrono::milliseconds(random() % 250));  // when it dies is the random variable
    if (random() % 4 != 0) {  // and most times only after it has written something
      for (int wait = 0;
           wait < 2000 && (!std::filesystem::exists(oracle_path) || std::filesystem::file_size(oracle_path) == before);
           ++wait) {
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
      }
    }
    kill(writer, SIGKILL);
    int status = 0;
    ASSERT_EQ(waitpid(writer, &status, 0), writer);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the writer failed by itself, exit " << WEXITSTATUS(status) << ", seed "
                                     << seed;
    if (!std::filesystem::exists(store)) continue;
    const Oracle oracle = ReadOracle(oracle_path);
    StoreOptions options;
    options.directory = store;
    options.read_only = kill_number % 2 == 0 && !oracle.committed.empty();
    auto opened = OpenHistoryStore(options);
    ASSERT_TRUE(opened.ok()) << opened.status() << " after kill " << kill_number << ", seed " << seed;
    acked = 0;
    for (int user = 0; user < kAppendThreads; ++user) {
      CheckUser(**opened, user, oracle);
      ASSERT_FALSE(HasFatalFailure()) << "kill " << kill_number << ", seed " << seed;
      if (oracle.committed.contains(user)) acked += oracle.committed.at(user);
    }
    opened->reset();
    if (kill_number % 10 == 9) {
      const auto report = VerifyStore(store);
      ASSERT_TRUE(report.ok()) << report.status();
      ASSERT_THAT(report->problems, testing::IsEmpty()) << "seed " << seed;
    }
  }
  std::printf("%d kills, %llu acknowledged batches, 0 lost, 0 invented, 0 doubled\n", kills,
              static_cast<unsigned long long>(acked));
  EXPECT_GT(acked, 0u);
}

}  // namespace
}  // namespace backstory
