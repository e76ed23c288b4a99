// kill -9 at every named point of the store (store/kill_point.h), while a script of all kinds of changes runs: what was
// acknowledged is there, what was begun is there wholly or not at all, nothing else (goal R1, whitebox).
//
// Method: the writer process notes each operation in a file outside the store before it begins and after its ack. It is
// killed by the point itself at its nth pass, n drawn at random. Then the store must open, pass verify, and equal a
// model of the operations acknowledged, or of those and the one begun; and the next writer goes on from there.
#include <spawn.h>
#include <sys/wait.h>

#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <random>

#include "gmock/gmock.h"
#include "store/kill_point.h"
#include "store/maintenance.h"
#include "tests/crash/script.h"
#include "tests/store/store_test_util.h"

extern char** environ;

namespace backstory {
namespace {

int KillsPerPoint() {
  const char* given = std::getenv("BACKSTORY_KILLS_PER_POINT");
  return given != nullptr ? std::atoi(given) : 4;
}

// Runs the writer to its death or its end; `point` = name:n, empty for none.
int RunWriter(const std::vector<std::string>& args, const std::string& point) {
  std::vector<char*> argv, envp;
  for (const std::string& arg : args) argv.push_back(const_cast<char*>(arg.c_str()));
  argv.push_back(nullptr);
  std::string assignment = "BACKSTORY_KILL_POINT=";
  assignment += point;
  for (char** variable = environ; *variable != nullptr; ++variable) envp.push_back(*variable);
  envp.push_back(assignment.data());
  envp.push_back(nullptr);
  pid_t pid = -1;
  EXPECT_EQ(posix_spawn(&pid, argv[0], nullptr, nullptr, argv.data(), envp.data()), 0) << argv[0];
  int status = 0;
  EXPECT_EQ(waitpid(pid, &status, 0), pid);
  return status;
}

struct Oracle {
  uint64_t begun = 0, acknowledged = 0;
};

Oracle ReadOracle(const std::string& path) {
  Oracle oracle;
  std::ifstream file(path);
  char mark;
  uint64_t n;
  while (file >> mark >> n) (mark == 'C' ? oracle.acknowledged : oracle.begun) = n + 1;
  return oracle;
}

bool Matches(HistoryStore& store, const std::map<std::string, std::vector<Event>>& expected) {
  for (const auto& [user, events] : expected) {
    if (Canonical(ReadEvents(store, {"shop", user})) != events) return false;
  }
  return true;
}

void CheckStoreAgainst(const Oracle& oracle, const std::string& directory) {
  if (!std::filesystem::exists(directory)) {
    ASSERT_EQ(oracle.acknowledged, 0u);
    return;
  }
  StoreOptions options;
  options.directory = directory;
  auto store = OpenHistoryStore(options);
  ASSERT_TRUE(store.ok()) << store.status();
  ScriptModel model;
  for (uint64_t n = 0; n < oracle.acknowledged; ++n) model.Do(n);
  const auto before = model.Read();
  const bool pending = oracle.begun > oracle.acknowledged;
  if (pending) model.Do(oracle.acknowledged);
  const auto after = model.Read();
  if (pending && ScriptModel::IsImport(oracle.acknowledged)) {
    for (const auto& [user, events] : after) {  // each user wholly or not at all
      const auto found = Canonical(ReadEvents(**store, {"shop", user}));
      ASSERT_TRUE(found == events || found == before.at(user)) << user << ": " << found.size() << " events";
    }
  } else {
    ASSERT_TRUE(Matches(**store, before) || (pending && Matches(**store, after)))
        << oracle.acknowledged << " operations acknowledged, " << oracle.begun << " begun";
  }
  store->reset();
  const auto report = VerifyStore(directory);
  ASSERT_TRUE(report.ok()) << report.status();
  ASSERT_THAT(report->problems, testing::IsEmpty());
}

TEST(KillPoint, EveryPointLeavesAWholeStore) {
  std::mt19937_64 random(TestSeed());
  TempDir dir = TempDir::InMemory();
  const auto stream = MakeSlotStream(dir / "slot");
  ASSERT_TRUE(stream.ok()) << stream.status();
  std::ofstream(dir / "stream", std::ios::binary) << *stream;
  int kills = 0;
  uint64_t operations = 0;
  for (const std::string_view point : KillPointNames()) {
    const std::string store = dir / "store", oracle_path = dir / "oracle";
    std::filesystem::remove_all(store);
    std::filesystem::remove_all(store + ".checkpoint");
    std::filesystem::remove(oracle_path);
    uint64_t passes = 30;
    for (int kill_number = 0; kill_number < KillsPerPoint();) {
      // The first pass, then a random one; a run that has not so many ends by itself, and the next draws from fewer.
      const uint64_t pass = kill_number == 0 ? 1 : 1 + random() % passes;
      SCOPED_TRACE(testing::Message() << "BACKSTORY_KILL_POINT=" << point << ":" << pass);
      const std::string armed = std::string(point) + ":" + std::to_string(pass);
      const int status = RunWriter({STORE_WRITER, "script", store, oracle_path, dir / "stream"}, armed);
      const bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
      ASSERT_TRUE(killed || (WIFEXITED(status) && WEXITSTATUS(status) == 0)) << "status " << status;
      ASSERT_TRUE(killed || pass > 1) << "this point is never passed";
      const Oracle oracle = ReadOracle(oracle_path);
      CheckStoreAgainst(oracle, store);
      ASSERT_FALSE(HasFailure());
      kill_number += killed;
      kills += killed;
      if (!killed) passes = pass - 1;
      operations = std::max(operations, oracle.acknowledged);
    }
  }
  std::printf("%d kills at %zu points, 0 acknowledged operations lost, none half done\n", kills,
              KillPointNames().size());
  EXPECT_EQ(static_cast<size_t>(kills), KillPointNames().size() * static_cast<size_t>(KillsPerPoint()));
  EXPECT_GT(operations, kScriptPeriod);
}

}  // namespace
}  // namespace backstory
