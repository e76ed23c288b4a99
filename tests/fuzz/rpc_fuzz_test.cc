// Replays the corpus, then a few thousand deterministic mutations of it. The libFuzzer build of rpc_fuzz.cc goes further.
#include <google/protobuf/stubs/logging.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "tests/fuzz/rpc_fuzz.h"

namespace backstory {
namespace {

std::map<std::string, std::string> Corpus() {
  const char* source = std::getenv("BACKSTORY_SOURCE_DIR");
  std::map<std::string, std::string> inputs;
  for (const auto& file :
       std::filesystem::directory_iterator(std::filesystem::path(source == nullptr ? "." : source) / "tests/fuzz/corpus/rpc")) {
    std::ifstream in(file.path(), std::ios::binary);
    inputs[file.path().filename()] = {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  }
  return inputs;
}

absl::Status RunText(const std::string& input) {
  return RunRpcInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
}

// A corpus file's name ends in the status it must give: rank_OK, append_nan_INVALID_ARGUMENT.
TEST(RpcFuzz, CorpusGivesTheStatusInItsName) {
  google::protobuf::LogSilencer silencer;
  const auto corpus = Corpus();
  ASSERT_GE(corpus.size(), 20u);
  for (const auto& [name, input] : corpus) {
    const absl::Status status = RunText(input);
    const std::string code = absl::StatusCodeToString(status.code());
    EXPECT_TRUE(name.size() > code.size() && name.substr(name.size() - code.size()) == code) << name << ": " << status;
  }
}

TEST(RpcFuzz, MutationsBreakNoPromise) {
  google::protobuf::LogSilencer silencer;
  const uint64_t seed = 9;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  std::vector<std::string> inputs;
  for (const auto& [name, input] : Corpus()) inputs.push_back(input);
  for (int round = 0; round < 4'000; ++round) {
    std::string input = inputs[random() % inputs.size()];
    for (uint64_t edits = 1 + random() % 4; edits > 0 && !input.empty(); --edits) {
      const size_t at = random() % input.size();
      switch (random() % 4) {
        case 0:
          input[at] = static_cast<char>(random());
          break;
        case 1:
          input.erase(at, 1 + random() % 8);
          break;
        case 2:
          input.insert(at, 1 + random() % 4, static_cast<char>(random()));
          break;
        default: {
          const std::string& other = inputs[random() % inputs.size()];
          input += other.substr(std::min<size_t>(1, other.size()));
        }
      }
    }
    (void)RunText(input);
  }
}

}  // namespace
}  // namespace backstory
