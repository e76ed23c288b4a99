// Version directories from the outside: written, loaded, copied, sealed, calibrated.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "models/grab/config_text.h"
#include "models/grab/init_random.h"
#include "models/grab/loader.h"
#include "models/grab/random_version.h"
#include "models/manifest.h"
#include "tests/models/temp_dir.h"

namespace backstory::grab {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// grab-tiny at <dir>/grab-tiny/1.
std::string WriteTiny(const TempDir& dir, const RandomVersionOptions& options = {}) {
  const std::string path = dir.path("grab-tiny/1");
  const absl::Status written = WriteRandomVersion(*PresetConfig("grab-tiny"), options, path);
  EXPECT_TRUE(written.ok()) << written;
  return path;
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

TEST(Version, RandomVersionLoadsAndScoresItsGoldens) {
  const TempDir dir;
  const std::string path = WriteTiny(dir);
  const auto loaded = LoadGrabVersion(path, {.expected_name = "grab-tiny"});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const LoadedGrab& grab = **loaded;
  EXPECT_EQ(grab.name, "grab-tiny");
  EXPECT_EQ(grab.version, "1");
  EXPECT_EQ(grab.hash.size(), 16u);
  EXPECT_EQ(grab.goldens.cases, 4u);
  EXPECT_EQ(grab.goldens.logits, 32u);
  // The same code wrote them on this machine, so nothing may differ.
  EXPECT_EQ(grab.goldens.worst, 0.0) << grab.goldens.worst_case;
  EXPECT_EQ(grab.model->state_id().size(), 16u);
  EXPECT_EQ(grab.calibration()->version(), 1u);
  EXPECT_EQ((*LoadGrabVersion(path + "/"))->version, "1");
}

TEST(Version, SameSeedSameFilesOtherSeedOtherHash) {
  const TempDir a, b, c;
  const auto first = ReadVersion(WriteTiny(a, {.seed = 7}));
  const auto again = ReadVersion(WriteTiny(b, {.seed = 7}));
  const auto other = ReadVersion(WriteTiny(c, {.seed = 8}));
  ASSERT_TRUE(first.ok() && again.ok() && other.ok());
  EXPECT_EQ(first->hash, again->hash);
  EXPECT_NE(first->hash, other->hash);
}

TEST(Version, GoldensTellModelsApart) {
  const TempDir a, b;
  const std::string path = WriteTiny(a, {.seed = 1});
  const std::string other = WriteTiny(b, {.seed = 2});
  // The weights of one model under the goldens of the other, with a MANIFEST that vouches for both.
  fs::copy_file(other + "/weights-00001-of-00001.safetensors", path + "/weights-00001-of-00001.safetensors",
                fs::copy_options::overwrite_existing);
  fs::remove(path + "/MANIFEST");
  ASSERT_TRUE(WriteManifest(path).ok());
  const auto loaded = LoadGrabVersion(path);
  EXPECT_EQ(loaded.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(loaded.status()), HasSubstr("golden case \"empty_history\": logit["));
  EXPECT_THAT(Message(loaded.status()), HasSubstr("expected "));
}

TEST(Version, ToleranceIsAnEdge) {
  const TempDir dir;
  const std::string path = WriteTiny(dir);
  const auto files = ReadVersion(path);
  ASSERT_TRUE(files.ok());
  const auto model = CreateModel(files->config, files->tensors, nullptr);
  ASSERT_TRUE(model.ok()) << model.status();
  std::vector<GoldenCase> goldens = files->goldens;
  double scale = 1;
  for (float logit : goldens[1].logits) scale = std::max<double>(scale, std::abs(logit));
  goldens[1].logits[3] += static_cast<float>(0.9 * kGoldenTolerance * scale);
  const auto within = CheckGoldens(**model, goldens);
  ASSERT_TRUE(within.ok()) << within.status();
  EXPECT_EQ(within->worst_case, "single_event[3][0]");
  EXPECT_NEAR(within->worst, 0.9 * kGoldenTolerance, 0.05 * kGoldenTolerance);
  goldens[1].logits[3] += static_cast<float>(0.3 * kGoldenTolerance * scale);
  EXPECT_FALSE(CheckGoldens(**model, goldens).ok());
  goldens[1].logits[3] = NAN;
  EXPECT_FALSE(CheckGoldens(**model, goldens).ok());
  goldens[1].logits.pop_back();
  EXPECT_THAT(Message(CheckGoldens(**model, goldens).status()), HasSubstr("expected 8 x 1, found 7"));
}

// A bf16 model serves only files whose fp32 model met the goldens at full sharpness.
TEST(Version, LoadsInBf16WithoutTrustingTheFilesLess) {
  const TempDir dir;
  const std::string path = WriteTiny(dir, {.seed = 1});
  const auto f32 = LoadGrabVersion(path), bf16 = LoadGrabVersion(path, {.precision = Dtype::kBf16});
  ASSERT_TRUE(f32.ok() && bf16.ok()) << f32.status() << bf16.status();
  EXPECT_EQ((*bf16)->precision, Dtype::kBf16);
  EXPECT_NE((*bf16)->model->state_id(), (*f32)->model->state_id());
  EXPECT_LT((*bf16)->model->parameter_bytes(), (*f32)->model->parameter_bytes());
  EXPECT_EQ((*bf16)->goldens.logits, (*f32)->goldens.logits);
  EXPECT_GT((*bf16)->goldens.worst, (*f32)->goldens.worst);
  EXPECT_LE((*bf16)->goldens.worst, kGoldenToleranceBf16);

  const auto files = ReadVersion(path);
  ASSERT_TRUE(files.ok());
  std::vector<GoldenCase> goldens = files->goldens;
  goldens[1].logits[3] += static_cast<float>(20 * kGoldenTolerance);  // well within what bf16 is allowed
  EXPECT_TRUE(CheckGoldens(*(*bf16)->model, goldens, kGoldenToleranceBf16).ok());
  std::string text;
  for (const GoldenCase& golden : goldens) text += GoldenToJson(golden, 1) + "\n";
  std::ofstream(path + "/goldens.jsonl", std::ios::trunc) << text;
  fs::remove(path + "/MANIFEST");
  ASSERT_TRUE(WriteManifest(path).ok());
  const auto loaded = LoadGrabVersion(path, {.precision = Dtype::kBf16});
  EXPECT_EQ(loaded.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(loaded.status()), HasSubstr("golden case \"single_event\": logit[3][0]"));
}

TEST(Version, SeveralWeightFilesAreOneModel) {
  const TempDir a, b;
  const auto one = LoadGrabVersion(WriteTiny(a));
  const std::string path = WriteTiny(b, {.weight_files = 3});
  const auto three = LoadGrabVersion(path);
  ASSERT_TRUE(one.ok() && three.ok()) << one.status() << three.status();
  EXPECT_EQ((*one)->model->state_id(), (*three)->model->state_id());
  EXPECT_TRUE(fs::exists(path + "/weights-00003-of-00003.safetensors"));
}

TEST(Version, WriteRefusesToOverwrite) {
  const TempDir dir;
  const std::string path = WriteTiny(dir);
  EXPECT_EQ(WriteRandomVersion(*PresetConfig("grab-tiny"), {}, path).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(WriteManifest(path).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(WriteRandomVersion(*PresetConfig("grab-tiny"), {.weight_files = 0}, dir.path("x")).code(),
            absl::StatusCode::kInvalidArgument);
  Config bad = *PresetConfig("grab-tiny");
  bad.heads = 0;
  EXPECT_THAT(Message(WriteRandomVersion(bad, {}, dir.path("y"))), HasSubstr("heads: 0 is outside [1, 64]"));
  EXPECT_FALSE(fs::exists(dir.path("y")));
}

TEST(Version, AbsentDirectoryAndManifestAreNotFound) {
  const TempDir dir;
  EXPECT_EQ(ReadVersion(dir.path("none")).status().code(), absl::StatusCode::kNotFound);
  const std::string path = WriteTiny(dir);
  fs::remove(path + "/MANIFEST");
  EXPECT_EQ(ReadVersion(path).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(ReadVersion(path).status()), HasSubstr("the version was not completed"));
}

TEST(Version, NameMustBeTheRepositorysFolder) {
  const TempDir dir;
  const auto loaded = LoadGrabVersion(WriteTiny(dir), {.expected_name = "other"});
  EXPECT_EQ(loaded.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(loaded.status()), HasSubstr("name: expected \"other\", found \"grab-tiny\""));
}

TEST(Version, SealingChecksAndLeavesNothingBehindOnFailure) {
  const TempDir dir;
  const std::string path = WriteTiny(dir);
  fs::remove(path + "/MANIFEST");
  ASSERT_TRUE(SealVersion(path).ok());
  EXPECT_TRUE(LoadGrabVersion(path).ok());
  fs::remove(path + "/MANIFEST");
  WriteAll(path + "/goldens.jsonl", "");
  EXPECT_THAT(Message(SealVersion(path)), HasSubstr("no case, at least one is needed"));
  EXPECT_FALSE(fs::exists(path + "/MANIFEST"));
}

TEST(Version, Sha256ManifestsLoad) {
  const TempDir dir;
  const std::string path = WriteTiny(dir);
  fs::remove(path + "/MANIFEST");
  ASSERT_TRUE(WriteManifest(path, DigestKind::kSha256).ok());
  EXPECT_TRUE(LoadGrabVersion(path).ok());
  // The published test vector, so that what another tool writes is what is checked here.
  const std::string abc = "abc";
  EXPECT_EQ(Digest(DigestKind::kSha256, {reinterpret_cast<const uint8_t*>(abc.data()), 3}),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Digest(DigestKind::kXxh3, {reinterpret_cast<const uint8_t*>(abc.data()), 3}),
            "06b05ab6733a618578af5f94892f3950");
}

TEST(Version, CalibrationsAreAddedBesideASealedVersion) {
  const TempDir dir;
  const std::string path = WriteTiny(dir);
  const std::string hash = ReadVersion(path)->hash;
  const std::vector<std::string> tasks{"click"};
  const auto number = AddCalibration(path, {{{"", {1.5, -0.25}}, {"feed", {2.0, 0.5}}}}, tasks);
  ASSERT_TRUE(number.ok()) << number.status();
  EXPECT_EQ(*number, 2u);
  const auto loaded = LoadGrabVersion(path);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ((*loaded)->hash, hash);
  EXPECT_EQ((*loaded)->calibrations.size(), 2u);
  const Calibration& newest = *(*loaded)->calibration();
  EXPECT_EQ(newest.version(), 2u);
  EXPECT_EQ(newest.Find("feed", 0), (Platt{2.0, 0.5}));
  EXPECT_EQ(newest.Find("search", 0), (Platt{1.5, -0.25}));
  const auto alone = ReadCalibration(path, 2, tasks);
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_EQ((*alone)->Find("feed", 0), (Platt{2.0, 0.5}));
  EXPECT_TRUE(ReadCalibration(path, 1, tasks).ok());
  EXPECT_EQ(ReadCalibration(path, 3, tasks).status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(AddCalibration(path, {{{"", {-1, 0}}}}, tasks).ok());

  // A file that MANIFEST does not cover stands on its own digest.
  std::string text = ReadAll(path + "/calibration/2.textproto");
  const size_t digit = text.find("1.5");
  ASSERT_NE(digit, std::string::npos);
  text[digit] = '7';
  WriteAll(path + "/calibration/2.textproto", text);
  EXPECT_EQ(LoadGrabVersion(path).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Message(ReadCalibration(path, 2, tasks).status()), HasSubstr("digest: does not match"));
  WriteAll(path + "/calibration/2.textproto", "version: 2");
  EXPECT_THAT(Message(ReadVersion(path).status()), HasSubstr("digest: missing"));
}

TEST(Calibration, IsALogisticFunctionByDefaultAndKeepsOrder) {
  const Calibration none;
  EXPECT_EQ(none.version(), 0u);
  EXPECT_FLOAT_EQ(none.Probability("any", 0, 0.0f), 0.5f);
  EXPECT_FLOAT_EQ(none.Probability("any", 3, 2.0f), 1.0f / (1.0f + std::exp(-2.0f)));
  const Calibration c = Calibration::Make(1, {{{"", {0.5, 1.0}}}});
  EXPECT_FLOAT_EQ(c.Probability("x", 0, -2.0f), 0.5f);
  EXPECT_FLOAT_EQ(c.Probability("x", 1, -2.0f), none.Probability("x", 1, -2.0f)) << "a task without entries";
  EXPECT_GT(c.Probability("", 0, -1e30f), 0.0f);
  EXPECT_LT(c.Probability("", 0, 1e30f), 1.0f);
  EXPECT_LT(c.Probability("", 0, 1.0f), c.Probability("", 0, 1.1f));
}

TEST(Calibration, RefusesWhatIsWrong) {
  const std::vector<std::string> tasks{"click", "like"};
  const auto message = [&](const std::string& text) {
    const auto parsed = Calibration::FromText(text, "f", tasks, 3, false);
    return parsed.ok() ? std::string("accepted") : Message(parsed.status());
  };
  EXPECT_EQ(message("version: 3"), "accepted");
  EXPECT_EQ(message("version: 3 entries { task: 'like' a: 2 b: -1 }"), "accepted");
  EXPECT_THAT(message("version: 4"), HasSubstr("f: version: 4, the file name says 3"));
  EXPECT_THAT(message("version: 3\nentry {}"), HasSubstr("f:2:"));
  EXPECT_THAT(message("version: 3 version: 3"), HasSubstr("f:1:"));
  EXPECT_THAT(message("version: 3 entries { task: 'buy' }"), HasSubstr("no such task"));
  EXPECT_THAT(message("version: 3 entries { task: 'like' } entries { task: 'like' }"), HasSubstr("twice"));
  for (const char* a : {"0", "-1", "nan", "inf"}) {
    EXPECT_THAT(message(std::string("version: 3 entries { task: 'like' a: ") + a + " }"), HasSubstr("a: ")) << a;
  }
  EXPECT_THAT(message("version: 3 entries { task: 'like' b: nan }"), HasSubstr("b: "));
  EXPECT_THAT(message("version: 3 digest: 'feed'"), HasSubstr("digest: does not match"));
}

}  // namespace
}  // namespace backstory::grab
