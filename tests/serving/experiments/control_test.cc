#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "serving/rpc/experiment_control.h"

namespace {
std::atomic<int> directory_syncs{0};
}
// Takes the C library's place in this test: counts the directories that are synced.
extern "C" int fsync(int fd) {
  struct stat status;
  if (fstat(fd, &status) == 0 && S_ISDIR(status.st_mode)) ++directory_syncs;
  return static_cast<int>(syscall(SYS_fsync, fd));
}

namespace backstory::rpc {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kText[] = R"(hash_version: 1
domain {
  name: "main"
  buckets { first: 0 count: 10000 }
  layer {
    name: "length"
    parameter: "history_rows"
    experiment {
      name: "longer"
      state: RUNNING
      buckets { first: 0 count: 10000 }
      ramp: 5000
      arm { name: "control" weight: 5000 }
      arm { name: "treatment" weight: 5000 parameters { name: "history_rows" value: "800" } }
    }
  }
}
)";

std::string Replace(std::string text, const std::string& what, const std::string& with) {
  return text.replace(text.find(what), what.size(), with);
}

class ExperimentControlTest : public testing::Test {
 protected:
  void SetUp() override {
    directory_ =
        testing::TempDir() + "/experiment_control/" + testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(directory_);
    std::filesystem::create_directories(directory_);
    file_ = directory_ + "/experiments.textproto";
  }
  void Write(const std::string& text) { std::ofstream(file_, std::ios::binary) << text; }
  static std::string Read(const std::string& path) {
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  // Polls only when told to, unless `poll` says otherwise.
  absl::StatusOr<std::unique_ptr<ExperimentControl>> Open(std::chrono::milliseconds poll = std::chrono::hours(1)) {
    assigner_ = std::make_shared<ExperimentAssigner>();
    return ExperimentControl::Open({file_, poll, nullptr}, assigner_, &metrics_);
  }
  int64_t ramp() const { return assigner_->plan()->config().domains.at(0).layers.at(0).experiments.at(0).ramp; }

  std::string directory_, file_;
  std::shared_ptr<ExperimentAssigner> assigner_;
  MemoryMetrics metrics_;
};

TEST_F(ExperimentControlTest, FollowsItsFileAndKeepsTheLastGoodOne) {
  Write(kText);
  auto control = Open();
  ASSERT_TRUE(control.ok()) << control.status();
  EXPECT_EQ(ramp(), 5000);
  Write(Replace(kText, "ramp: 5000", "ramp: 6000"));
  ASSERT_TRUE((*control)->Poll().ok());
  EXPECT_EQ(ramp(), 6000);
  Write(Replace(kText, "ramp: 5000", "ramp: 100"));
  const absl::Status shrunk = (*control)->Poll();
  EXPECT_THAT(std::string(shrunk.message()),
              HasSubstr("experiments.textproto:12: domain[0].layer[0].experiment[0].ramp: shrunk from 6000 to 100"));
  EXPECT_EQ(ramp(), 6000);
  EXPECT_EQ(metrics_.Value("backstory_experiment_config_file_refused"), 1);
  EXPECT_TRUE((*control)->Poll().ok()) << "told once";
  EXPECT_EQ(metrics_.Value("backstory_experiment_config_refused_total"), 1);
  std::filesystem::remove(file_);
  EXPECT_EQ((*control)->Poll().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ramp(), 6000) << "an absent file is not an empty configuration";
  Write(Replace(kText, "state: RUNNING", "state: KILLED"));
  EXPECT_FALSE((*control)->Poll().ok()) << "killed, but the ramp is back at 5000";
  Write(Replace(Replace(kText, "state: RUNNING", "state: KILLED"), "ramp: 5000", "ramp: 6000"));
  EXPECT_TRUE((*control)->Poll().ok());
  EXPECT_EQ(metrics_.Value("backstory_experiment_config_file_refused"), 0);
}

// R24: a kill switch is live within 5 seconds (the watcher looks every second), here as fast as it is told to look.
TEST_F(ExperimentControlTest, WatchesItsFile) {
  Write(kText);
  auto control = Open(std::chrono::milliseconds(1));
  ASSERT_TRUE(control.ok());
  std::ofstream(file_ + ".tmp") << "kill_all: true " << kText;
  std::filesystem::rename(file_ + ".tmp", file_);
  while (!assigner_->plan()->config().kill_all) std::this_thread::yield();  // ctest's limit ends it
}

TEST_F(ExperimentControlTest, ABrokenFileAtTheStartIsRefusedUnlessThereIsALastGoodOne) {
  EXPECT_EQ(Open().status().code(), absl::StatusCode::kNotFound);
  Write("hash_version: 7");
  EXPECT_EQ(Open().status().code(), absl::StatusCode::kInvalidArgument);
  Write(kText);
  ASSERT_TRUE(Open().ok());
  Write("hash_version: 7");
  auto control = Open();
  ASSERT_TRUE(control.ok()) << control.status();
  EXPECT_EQ(ramp(), 5000);
  EXPECT_EQ(metrics_.Value("backstory_experiment_config_file_refused"), 1);
}

TEST_F(ExperimentControlTest, ARestartDoesNotForgetWhatRan) {
  Write(kText);
  ASSERT_TRUE(Open().ok());
  Write(Replace(kText, "ramp: 5000", "ramp: 100"));
  auto control = Open();
  ASSERT_TRUE(control.ok());
  EXPECT_EQ(ramp(), 5000) << "units would have left the experiment while the server was down";
}

TEST_F(ExperimentControlTest, ApplyWritesTheFileAndIsAtomic) {
  Write(kText);
  auto control = Open();
  ASSERT_TRUE(control.ok());
  const std::string first = assigner_->plan()->config().version;
  const std::string more = Replace(kText, "ramp: 5000", "ramp: 7000");
  EXPECT_EQ((*control)->Apply(more, "x0").status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(Read(file_), kText);
  const int syncs = directory_syncs;
  const auto version = (*control)->Apply(more, first);
  ASSERT_TRUE(version.ok()) << version.status();
  EXPECT_GT(directory_syncs, syncs) << "a power loss must not undo what was acknowledged";
  EXPECT_NE(*version, first);
  EXPECT_EQ(Read(file_), more);
  EXPECT_EQ((*control)->active_text(), more);
  EXPECT_EQ(ramp(), 7000);
  EXPECT_TRUE((*control)->Poll().ok()) << "its own file is no news";
  const auto refused = (*control)->Apply(kText, "");
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Read(file_), more);
  EXPECT_EQ(ramp(), 7000);
  EXPECT_THAT(
      (*control)->Validate(kText),
      ElementsAre(HasSubstr("config_text:12: domain[0].layer[0].experiment[0].ramp: shrunk from 7000 to 5000")));
  EXPECT_TRUE((*control)->Validate(more).empty());
}

}  // namespace
}  // namespace backstory::rpc
