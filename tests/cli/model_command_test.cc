// `backstory model ...` in process: what it prints, what it writes, and its exit codes.
#include "serving/cli/model_command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "nlohmann/json.hpp"
#include "tests/models/temp_dir.h"

namespace backstory {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;

struct Result {
  int code = 0;
  std::string out, err;
};

Result Backstory(std::vector<std::string> arguments) {
  CLI::App app;
  AddModelCommand(app);
  std::reverse(arguments.begin(), arguments.end());
  Result result;
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  try {
    app.parse(arguments);
  } catch (const CLI::RuntimeError& error) {
    result.code = error.get_exit_code();
  } catch (const CLI::Error& error) {
    result.code = -1;  // usage: main's to print and to turn into 2
  }
  result.out = testing::internal::GetCapturedStdout();
  result.err = testing::internal::GetCapturedStderr();
  return result;
}

class ModelCommand : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = dir_.path("grab-tiny/1");
    const Result made = Backstory({"model", "init-random", "grab-tiny", "--seed", "3", "--out", path_});
    ASSERT_EQ(made.code, 0) << made.err;
    EXPECT_THAT(made.out, HasSubstr("grab-tiny version 1, content "));
    EXPECT_EQ(made.err, "");
  }
  TempDir dir_;
  std::string path_;
};

TEST_F(ModelCommand, InspectPrintsTextAndJson) {
  const Result text = Backstory({"model", "inspect", path_});
  EXPECT_EQ(text.code, 0) << text.err;
  EXPECT_THAT(text.out, HasSubstr("d 16, 2 heads x 8, ffn 24"));
  EXPECT_THAT(text.out, HasSubstr("(--tensors lists them)"));
  EXPECT_THAT(Backstory({"model", "inspect", path_, "--tensors"}).out, HasSubstr("w.l0.c0.wq [16, 16]"));
  const auto json = nlohmann::json::parse(Backstory({"model", "inspect", path_, "--json"}).out);
  EXPECT_EQ(json["name"], "grab-tiny");
  EXPECT_EQ(json["config"]["layers"], 2);
  // K and V of two heads of 8 floats in two layers.
  EXPECT_EQ(json["kv_bytes_per_row"], 2 * 2 * 2 * 8 * 4);
  uint64_t parameters = 0;
  for (const auto& tensor : json["tensors"]) {
    uint64_t size = 1;
    for (const auto& dim : tensor["shape"]) size *= dim.get<uint64_t>();
    parameters += size;
  }
  EXPECT_EQ(json["parameters"], parameters);
  EXPECT_THAT(json["state_id"].get<std::string>(), MatchesRegex("[0-9a-f]+"));
}

TEST_F(ModelCommand, VerifyReportsGoldens) {
  const auto json = nlohmann::json::parse(Backstory({"model", "verify", path_, "--json", "--threads", "1"}).out);
  EXPECT_EQ(json["goldens"]["cases"], 4);
  EXPECT_EQ(json["goldens"]["worst"], 0.0);
  EXPECT_THAT(Backstory({"model", "verify", path_}).out, HasSubstr("goldens: 4 cases, 32 logits"));
}

TEST_F(ModelCommand, ExitCodesTellWhatIsWrong) {
  EXPECT_EQ(Backstory({"model", "verify", dir_.path("none")}).code, 1);
  EXPECT_EQ(Backstory({"model", "init-random", "grab-9", "--out", dir_.path("x")}).code, 2);
  EXPECT_EQ(Backstory({"model", "init-random", "grab-tiny", "--out", path_}).code, 1);
  EXPECT_EQ(Backstory({"model"}).code, -1);
  EXPECT_EQ(Backstory({"model", "verify"}).code, -1);
  EXPECT_EQ(Backstory({"model", "init-random", "grab-tiny"}).code, -1);

  const std::string weights = path_ + "/weights-00001-of-00001.safetensors";
  const std::string good = ReadAll(weights);
  std::string bad = good;
  bad.back() = static_cast<char>(bad.back() ^ 1);
  WriteAll(weights, bad);
  const Result damaged = Backstory({"model", "verify", path_});
  EXPECT_EQ(damaged.code, 4);
  EXPECT_THAT(damaged.err, HasSubstr("weights-00001-of-00001.safetensors: content does not have the digest"));
  EXPECT_EQ(damaged.out, "");
  EXPECT_EQ(Backstory({"model", "inspect", path_}).code, 4);
  WriteAll(weights, good);
  EXPECT_EQ(Backstory({"model", "verify", path_}).code, 0);
}

TEST_F(ModelCommand, SealRefusesWhatWouldNotLoad) {
  EXPECT_EQ(Backstory({"model", "seal", path_}).code, 1) << "already sealed";
  std::filesystem::remove(path_ + "/MANIFEST");
  EXPECT_EQ(Backstory({"model", "seal", path_}).code, 0);
  std::filesystem::remove(path_ + "/MANIFEST");
  WriteAll(path_ + "/model.textproto", "name: 'grab-tiny'\nlayerz: 2\n");
  const Result refused = Backstory({"model", "seal", path_});
  EXPECT_EQ(refused.code, 3);
  EXPECT_THAT(refused.err, HasSubstr("model.textproto:2:"));
  EXPECT_THAT(refused.err, HasSubstr("layerz"));
}

TEST_F(ModelCommand, GenerativeVersionsAreMadeVerifiedAndSealed) {
  const std::string path = dir_.path("glass-tiny/1");
  const Result made = Backstory({"model", "init-random", "glass-tiny", "--items", "40", "--seed", "3", "--out", path});
  ASSERT_EQ(made.code, 0) << made.err;
  EXPECT_THAT(made.out, HasSubstr("glass-tiny version 1, content "));
  EXPECT_THAT(made.out, HasSubstr("catalogue: 40 items"));
  EXPECT_EQ(Backstory({"model", "init-random", "glass-tiny", "--out", path}).code, 1) << "it exists";
  EXPECT_EQ(Backstory({"model", "verify", path}).out, made.out);
  EXPECT_EQ(Backstory({"model", "seal", path}).code, 1) << "already sealed";
  std::filesystem::remove(path + "/MANIFEST");
  EXPECT_EQ(Backstory({"model", "seal", path}).code, 0);
  std::filesystem::remove(path + "/MANIFEST");
  std::filesystem::remove(path + "/goldens.jsonl");
  const Result refused = Backstory({"model", "seal", path});
  EXPECT_NE(refused.code, 0);
  EXPECT_THAT(refused.err, HasSubstr("goldens.jsonl: missing"));
  EXPECT_FALSE(std::filesystem::exists(path + "/MANIFEST"));
  const Result calibrate = Backstory({"model", "calibrate", path, path + "/model.textproto"});
  EXPECT_EQ(calibrate.code, 3);
  EXPECT_THAT(calibrate.err, HasSubstr("a generative version has no calibration"));
  EXPECT_THAT(Backstory({"model", "init-random", "glass", "--out", path + "x"}).err, HasSubstr("glass-released"));
}

TEST_F(ModelCommand, CalibrateAddsANumberedFile) {
  WriteAll(dir_.path("platt.textproto"), "entries { task: 'click' a: 0.9 b: -0.1 }");
  const Result added = Backstory({"model", "calibrate", path_, dir_.path("platt.textproto")});
  EXPECT_EQ(added.code, 0) << added.err;
  EXPECT_EQ(added.out, path_ + "/calibration/2.textproto\n");
  EXPECT_EQ(nlohmann::json::parse(Backstory({"model", "inspect", path_, "--json"}).out)["calibrations"],
            (std::vector<int>{1, 2}));
  WriteAll(dir_.path("platt.textproto"), "entries { task: 'buy' }");
  EXPECT_EQ(Backstory({"model", "calibrate", path_, dir_.path("platt.textproto")}).code, 3);
  EXPECT_EQ(Backstory({"model", "calibrate", path_, dir_.path("absent")}).code, 1);
}

}  // namespace
}  // namespace backstory
