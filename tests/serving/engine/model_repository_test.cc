#include "serving/engine/model_repository.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "serving/engine/repository_files.h"
#include "tests/serving/engine/harness.h"

namespace {
std::atomic<int> directory_syncs{0};
}
// Takes the C library's place in this test: counts the directories that are synced.
extern "C" int fsync(int fd) {
  struct stat status;
  if (fstat(fd, &status) == 0 && S_ISDIR(status.st_mode)) ++directory_syncs;
  return static_cast<int>(syscall(SYS_fsync, fd));
}

namespace backstory::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

// With calibrations 1, 2 and 3: n gives n.
std::shared_ptr<const ServedModel> Version(const std::string& version, const std::string& state_id = "s") {
  auto served = std::make_shared<ServedModel>(*Served(std::make_shared<FakeModel>(FakeConfig(), state_id), version));
  const auto read = [](uint32_t number) -> absl::StatusOr<ServedCalibration> {
    if (number > 3) return absl::NotFoundError("calibration/" + std::to_string(number) + ".textproto");
    return ServedCalibration{number, [number](std::string_view, int, float) { return static_cast<float>(number); }};
  };
  served->calibration = *read(3);
  served->read_calibration = read;
  return served;
}

class ModelRepositoryTest : public ::testing::Test {
 protected:
  ModelRepositoryTest() : root_(::testing::TempDir() + "repository_" + std::to_string(::getpid())) {
    fs::remove_all(root_);
    fs::create_directories(root_);
  }
  ~ModelRepositoryTest() override { fs::remove_all(root_); }
  void AddVersion(const std::string& version, bool complete = true) {
    fs::create_directories(root_ + "/fake/" + version);
    if (complete) std::ofstream(root_ + "/fake/" + version + "/MANIFEST") << "manifest\n";
  }
  std::unique_ptr<ModelRepository> Open(bool keep_choices = true) {
    return std::make_unique<ModelRepository>(
        RepositoryOptions{root_, "", keep_choices, stop_loading_},
        [this](const ModelSource& source) -> absl::StatusOr<std::shared_ptr<const ServedModel>> {
          loaded_.push_back(source.version);
          if (broken_.contains(source.version)) return absl::DataLossError("golden case 3 is off by 0.2");
          return Version(source.version);
        },
        [this](const std::shared_ptr<const ServedModel>& served) { return warm_ ? warm_(*served) : absl::OkStatus(); },
        [this](const ServedModel& served) { unloaded_.push_back(served.version); }, &metrics_);
  }
  static std::string StableOf(const ModelRepository& repository) {
    const auto served = repository.Resolve({"fake", "", ""});
    return served.ok() ? (*served)->version : std::string(served.status().message());
  }

  const std::string root_;
  std::function<bool()> stop_loading_;
  MemoryMetrics metrics_;
  std::vector<std::string> loaded_, unloaded_;
  std::set<std::string> broken_;
  std::function<absl::Status(const ServedModel&)> warm_;
};

// A label or calibration that was acknowledged is still there after a power loss: its name is synced, not its bytes
// alone.
TEST_F(ModelRepositoryTest, AcknowledgedChoicesSyncTheirDirectory) {
  AddVersion("1");
  auto repository = Open();
  ASSERT_TRUE(repository->Load("fake", "1").ok());
  int before = directory_syncs;
  ASSERT_TRUE(repository->SetLabel("fake", "stable", "1").ok());
  EXPECT_EQ(directory_syncs, before + 1);
  before = directory_syncs;
  ASSERT_TRUE(repository->SetCalibration("fake", "1", 2).ok());
  EXPECT_EQ(directory_syncs, before + 1);
}

TEST_F(ModelRepositoryTest, TheLoadAtStartStopsBetweenVersions) {
  for (const char* version : {"1", "2"}) AddVersion(version);
  std::ofstream(root_ + "/fake/LABELS") << "canary 1\nstable 2\n";
  stop_loading_ = [this] { return !loaded_.empty(); };
  EXPECT_EQ(Open()->LoadAtStart().code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(loaded_, ElementsAre("1"));
}

TEST_F(ModelRepositoryTest, StartsWithTheNewestCompleteVersion) {
  AddVersion("9");
  AddVersion("10");
  AddVersion("11", /*complete=*/false);
  fs::create_directory_symlink(root_ + "/fake/10", root_ + "/fake/12");
  auto repository = Open();
  ASSERT_TRUE(repository->LoadAtStart().ok());
  EXPECT_EQ(StableOf(*repository), "10");
  EXPECT_THAT(loaded_, ElementsAre("10"));
  EXPECT_EQ(repository->List("fake").size(), 2u);
  EXPECT_EQ(metrics_.Value("backstory_models_ready"), 1);
}

TEST_F(ModelRepositoryTest, LabelsSurviveARestart) {
  AddVersion("1");
  AddVersion("2");
  {
    auto repository = Open();
    ASSERT_TRUE(repository->LoadAtStart().ok());
    ASSERT_TRUE(repository->Load("fake", "1").ok());
    EXPECT_EQ(*repository->SetLabel("fake", "stable", "1"), "2");
    EXPECT_EQ(*repository->SetLabel("fake", "canary", "2"), "");
  }
  auto repository = Open();
  ASSERT_TRUE(repository->LoadAtStart().ok());
  EXPECT_EQ(StableOf(*repository), "1");
  EXPECT_EQ((*repository->Resolve({"", "", "canary"}))->version, "2");
}

TEST_F(ModelRepositoryTest, ACalibrationIsSwappedWithoutLoadingAndSurvivesARestart) {
  AddVersion("1");
  {
    auto repository = Open();
    ASSERT_TRUE(repository->LoadAtStart().ok());
    const auto held = *repository->Resolve({"fake", "1", ""});
    EXPECT_EQ(held->calibration.config_version(), "calibration-3") << "the newest";
    EXPECT_EQ(*repository->SetCalibration("fake", "1", 2), 3u);
    const auto now = *repository->Resolve({"fake", "1", ""});
    EXPECT_EQ(now->calibration.config_version(), "calibration-2");
    EXPECT_EQ(now->calibration.probability("", 0, 1.0f), 2.0f);
    EXPECT_EQ(held->calibration.probability("", 0, 1.0f), 3.0f) << "a request in flight keeps the one it began with";
    EXPECT_EQ(now->model, held->model) << "so user states are kept";
    EXPECT_EQ(repository->List("fake")[0].calibration, 2u);
    EXPECT_EQ(repository->SetCalibration("fake", "1", 9).status().code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(repository->SetCalibration("fake", "2", 1).status().code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(repository->List("fake")[0].calibration, 2u) << "the old one stays";
    EXPECT_THAT(loaded_, ElementsAre("1"));
    EXPECT_EQ(metrics_.Value("backstory_calibration_swaps_total{outcome=\"done\"}"), 1);
    EXPECT_EQ(metrics_.Value("backstory_calibration_swaps_total{outcome=\"refused\"}"), 2)
        << "every call that changed nothing";
  }
  auto repository = Open();
  ASSERT_TRUE(repository->LoadAtStart().ok());
  EXPECT_EQ(repository->List("fake")[0].calibration, 2u);
  std::ofstream(root_ + "/fake/CALIBRATIONS") << "1 0\n";
  const absl::Status damaged = Open()->LoadAtStart();
  EXPECT_THAT(std::string(damaged.message()), HasSubstr("CALIBRATIONS:1: expected \"<version> <calibration>\""));
}

TEST_F(ModelRepositoryTest, AToolKeepsItsChoicesToItself) {
  AddVersion("1");
  auto repository = Open(/*keep_choices=*/false);
  ASSERT_TRUE(repository->LoadAtStart().ok());
  ASSERT_TRUE(repository->SetCalibration("fake", "1", 1).ok());
  ASSERT_TRUE(repository->SetLabel("fake", "canary", "1").ok());
  EXPECT_EQ((*repository->Resolve({"fake", "", "canary"}))->calibration.number, 1u);
  EXPECT_FALSE(fs::exists(root_ + "/fake/CALIBRATIONS"));
  EXPECT_FALSE(fs::exists(root_ + "/fake/LABELS"));
}

TEST_F(ModelRepositoryTest, ADamagedLabelsFileIsRefusedByLine) {
  AddVersion("1");
  std::ofstream(root_ + "/fake/LABELS") << "stable 1\nstable 1\n";
  const absl::Status status = Open()->LoadAtStart();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("LABELS:2"));
}

TEST_F(ModelRepositoryTest, AnEmptyRepositorySaysWhatItExpected) {
  const absl::Status status = Open()->LoadAtStart();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("<model>/<version>/MANIFEST"));
}

// R8: a version that fails its goldens or its warm-up is never ready, and what served before serves on.
TEST_F(ModelRepositoryTest, AFailedLoadKeepsTheOldVersion) {
  AddVersion("1");
  AddVersion("2");
  AddVersion("3");
  auto repository = Open();
  broken_ = {"2"};
  ASSERT_FALSE(repository->Load("fake", "2").ok());
  ASSERT_TRUE(repository->Load("fake", "1").ok());
  ASSERT_TRUE(repository->SetLabel("fake", "stable", "1").ok());
  warm_ = [](const ServedModel&) { return absl::InternalError("a score that is not finite"); };
  const absl::Status warm = repository->Load("fake", "3");
  EXPECT_EQ(warm.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(warm.message()), HasSubstr("model fake version 3: warm-up: a score that is not finite"));
  EXPECT_EQ(StableOf(*repository), "1");
  for (const char* version : {"2", "3"}) {
    const absl::Status label = repository->SetLabel("fake", "stable", version).status();
    EXPECT_EQ(label.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(label.message()), HasSubstr("FAILED"));
    EXPECT_EQ(repository->Resolve({"fake", version, ""}).status().code(), absl::StatusCode::kFailedPrecondition);
  }
  const std::vector<VersionInfo> list = repository->List();
  EXPECT_EQ(list[1].reason, "golden case 3 is off by 0.2");
  EXPECT_EQ(metrics_.Value("backstory_model_loads_total{outcome=\"failed\"}"), 2);
  warm_ = nullptr;
  EXPECT_TRUE(repository->Load("fake", "3").ok());  // it can be tried again
}

TEST_F(ModelRepositoryTest, NamesAndMissingVersions) {
  AddVersion("1");
  auto repository = Open();
  EXPECT_EQ(repository->Load("../fake", "1").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(repository->Load("fake", "..").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(repository->Load("fake", "2").code(), absl::StatusCode::kNotFound);
  AddVersion("2", false);
  EXPECT_THAT(std::string(repository->Load("fake", "2").message()), HasSubstr("no MANIFEST"));
  EXPECT_EQ(repository->SetLabel("fake", "Stable!", "1").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(repository->Unload("fake", "5").code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(loaded_.empty());
}

TEST_F(ModelRepositoryTest, UnloadRefusesLabelledVersionsAndRequestsKeepTheirs) {
  AddVersion("1");
  AddVersion("2");
  auto repository = Open();
  ASSERT_TRUE(repository->LoadAtStart().ok());
  const absl::Status refused = repository->Unload("fake", "2");
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("label \"stable\""));
  const auto pinned = *repository->Resolve({});
  ASSERT_TRUE(repository->Load("fake", "1").ok());
  ASSERT_TRUE(repository->SetLabel("fake", "stable", "1").ok());
  ASSERT_TRUE(repository->Unload("fake", "2").ok());
  EXPECT_EQ(pinned->model->state_id(), "s");
  EXPECT_THAT(unloaded_, ElementsAre("2"));
  EXPECT_EQ(repository->Resolve({"", "2", ""}).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(repository->Load("fake", "2").ok());
}

TEST_F(ModelRepositoryTest, TwoLoadsOfOneVersionDoNotRace) {
  AddVersion("1");
  auto repository = Open();
  warm_ = [&](const ServedModel&) {
    EXPECT_EQ(repository->List()[0].state, VersionState::kWarming);
    EXPECT_EQ(repository->Load("fake", "1").code(), absl::StatusCode::kAborted);
    EXPECT_EQ(repository->Unload("fake", "1").code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(repository->SetLabel("fake", "stable", "1").status().code(), absl::StatusCode::kFailedPrecondition);
    return absl::OkStatus();
  };
  EXPECT_TRUE(repository->Load("fake", "1").ok());
  EXPECT_TRUE(repository->Load("fake", "1").ok());  // nothing to do
  EXPECT_THAT(loaded_, ElementsAre("1"));
}

TEST(VersionLessTest, ComparesNumbersAsNumbers) {
  const std::vector<std::string> order{"1", "2", "10", "2024-01-31", "2024-02-01", "v9", "v10", "v10.1", "v10.1-a"};
  for (size_t i = 0; i < order.size(); ++i) {
    for (size_t j = 0; j < order.size(); ++j) EXPECT_EQ(VersionLess(order[i], order[j]), i < j) << order[i] << order[j];
  }
}

// Unloading drops the states that only that version could use.
TEST(EngineUnloadTest, StatesGoWithTheirLastVersion) {
  Harness harness({{"1", Version("1", "s")}, {"2", Version("2", "s")}, {"3", Version("3", "t")}});
  ModelRepository& models = harness.engine->models();
  harness.Append("a", {Shown(1, kNow - kSecond, 1)});
  for (const char* version : {"1", "2", "3"}) {
    ASSERT_TRUE(models.Load("fake", version).ok());
    RankQuery query = Query("a");
    query.model.version = version;
    const auto reply = harness.Rank(query);
    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_EQ(reply->cache.source, version == std::string("2") ? "hit" : "rebuild");  // 1 and 2 share state
  }
  EXPECT_EQ(harness.engine->Stats().cached_states, 2u);
  ASSERT_TRUE(models.Unload("fake", "2").ok());
  EXPECT_EQ(harness.engine->Stats().cached_states, 2u);
  ASSERT_TRUE(models.Unload("fake", "3").ok());
  EXPECT_EQ(harness.engine->Stats().cached_states, 1u);
}

}  // namespace
}  // namespace backstory::testing
