// Runs a fuzz target without a fuzzer: its whole corpus, then cuts, flips and splices of it. Random ones print the
// seed; BACKSTORY_SEED repeats them. A crash, a sanitizer report or an abort of the target fails the test.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

constexpr int kMutantsPerSeed = 300;

void RunTarget(const std::string& input) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
}

std::vector<std::string> Corpus() {
  const char* root = std::getenv("BACKSTORY_SOURCE_DIR");
  const auto folder = std::filesystem::path(root != nullptr ? root : ".") / "tests/fuzz/corpus" / BACKSTORY_FUZZ_CORPUS;
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  std::vector<std::string> inputs;
  for (const auto& path : paths) {
    std::ifstream in(path, std::ios::binary);
    inputs.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  }
  return inputs;
}

TEST(FuzzReplay, Corpus) {
  const std::vector<std::string> corpus = Corpus();
  ASSERT_GE(corpus.size(), 5u);
  for (const std::string& input : corpus) RunTarget(input);
  RunTarget("");
}

TEST(FuzzReplay, MutantsOfTheCorpus) {
  const char* given = std::getenv("BACKSTORY_SEED");
  const uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  std::printf("BACKSTORY_SEED=%llu\n", static_cast<unsigned long long>(seed));
  std::fflush(stdout);  // a crash must not take it away
  std::mt19937_64 random(seed);
  const auto below = [&](size_t n) { return n == 0 ? size_t{0} : static_cast<size_t>(random() % n); };
  const std::vector<std::string> corpus = Corpus();
  for (const std::string& input : corpus) {
    for (int i = 0; i < kMutantsPerSeed; ++i) {
      std::string mutant = input;
      for (size_t changes = 1 + below(4); changes > 0; --changes) {
        const size_t at = below(mutant.size() + 1);
        switch (below(5)) {
          case 0:
            if (at < mutant.size()) mutant[at] = static_cast<char>(mutant[at] ^ (1 << below(8)));
            break;
          case 1:
            mutant.resize(at);
            break;
          case 2:
            mutant.erase(at, below(16));
            break;
          case 3:
            mutant.insert(at, mutant.substr(below(mutant.size()), below(64)));
            break;
          default: {
            const std::string& other = corpus[below(corpus.size())];
            const size_t from = below(other.size());
            mutant.replace(at, below(32), other.substr(from, below(64)));
          }
        }
      }
      RunTarget(mutant);
    }
  }
}

}  // namespace
