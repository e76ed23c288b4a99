#include "serving/cli/tokenize_command.h"

#include <sys/stat.h>

#include <atomic>
#include <cstdio>
#include <filesystem>
#include <mutex>
#include <thread>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "features/io/text_file.h"
#include "models/golden.h"
#include "models/grab/config_text.h"
#include "serving/cli/ingest_common.h"
#include "serving/cli/tokenize_corpus.h"
#include "serving/cli/tokenize_shard.h"
#include "store/rocksdb_history_store.h"

namespace backstory {
namespace {

constexpr const char* kExamples = R"(
Examples:
  backstory tokenize --preset movielens --events ratings.csv --items movies.csv \
      --model-config model.textproto --out shards/
  backstory tokenize --store /data/store --namespace shop --as-of 1700000000000000 \
      --model-config model.textproto --out shards/
  backstory tokenize --cases goldens.jsonl --model-config model.textproto --out case_tokens.safetensors

Exit codes: 0 done, 1 failed or bad rows, 2 usage, 3 model configuration invalid, 4 data damaged.)";

struct Flags {
  ImportFlags import;
  std::string events, items, store, ns = "default", model_config, out, cases;
  int64_t as_of = AsOf{}.event_time_us;
  uint64_t shard_users = 256;
  uint64_t allow_bad = 0;
  unsigned threads = 0;
  bool json = false;
};

struct ModelText {
  grab::Config config;
  std::string text;
};

ModelText ReadModelConfig(const std::string& path) {
  const absl::StatusOr<TextFile> file = TextFile::Open(path);
  if (!file.ok()) Leave("tokenize", file.status(), kExitConfig);
  absl::StatusOr<grab::Config> config = grab::ConfigFromText(file->text(), path);
  if (!config.ok()) Leave("tokenize", config.status(), kExitConfig);
  return {*std::move(config), std::string(file->text())};
}

std::map<std::string, std::string> MetadataOf(const ModelText& model, const Flags& flags) {
  return {{"config", model.text},
          {"feature_version", absl::StrCat(model.config.tokenizer.feature_version)},
          {"as_of", absl::StrCat(flags.as_of)}};
}

Corpus CorpusOfFiles(const Flags& flags) {
  const absl::StatusOr<ImportMappings> mappings = MappingsOf(flags.import);
  if (!mappings.ok()) Leave("tokenize", mappings.status(), kExitUsage);
  std::vector<BadRow> bad_events, bad_items;
  absl::StatusOr<Corpus> corpus = CorpusFromFiles(flags.events, flags.items, *mappings, &bad_events, &bad_items);
  if (!corpus.ok()) Leave("tokenize", corpus.status());
  BadRowReport report;
  for (const BadRow& row : bad_events) report.Add(flags.events, row);
  for (const BadRow& row : bad_items) report.Add(flags.items, row);
  if (auto status = report.Finish(); !status.ok()) Leave("tokenize", status);
  if (report.count() > flags.allow_bad) {
    Leave("tokenize",
          absl::InvalidArgumentError(absl::StrCat(report.count(), " bad rows, --allow-bad ", flags.allow_bad)));
  }
  return *std::move(corpus);
}

Corpus CorpusOfStore(const Flags& flags) {
  StoreOptions options;
  options.directory = flags.store;
  options.create_if_missing = false;
  options.read_only = true;
  absl::StatusOr<Store> store = OpenStore(options);
  if (!store.ok()) Leave("tokenize", store.status());
  absl::StatusOr<Corpus> corpus =
      CorpusFromStore(store->history.get(), *store->catalog, flags.ns, {.event_time_us = flags.as_of});
  if (!corpus.ok()) Leave("tokenize", corpus.status());
  return *std::move(corpus);
}

// Shards are independent, so their number of writers does not change a byte.
ShardCounts WriteShards(const Corpus& corpus, const ModelText& model, const Flags& flags) {
  const size_t shards = std::max<size_t>(1, (corpus.users.size() + flags.shard_users - 1) / flags.shard_users);
  std::atomic<size_t> next{0};
  std::mutex mutex;  // guards total and failed
  ShardCounts total;
  absl::Status failed;
  const auto work = [&] {
    for (size_t i = next++; i < shards; i = next++) {
      const size_t begin = std::min(i * flags.shard_users, corpus.users.size());
      const size_t count = std::min<size_t>(flags.shard_users, corpus.users.size() - begin);
      const std::string name = absl::StrCat("/tokens-", absl::Dec(i, absl::kZeroPad5), "-of-",
                                            absl::Dec(shards, absl::kZeroPad5), ".safetensors");
      std::map<std::string, std::string> metadata = MetadataOf(model, flags);
      metadata["shard"] = absl::StrCat(i, " of ", shards);
      const absl::StatusOr<ShardCounts> counts =
          WriteTokenShard(corpus, std::span(corpus.users).subspan(begin, count), {.event_time_us = flags.as_of},
                          model.config.tokenizer, flags.out + name, metadata);
      const std::lock_guard lock(mutex);
      if (!counts.ok()) {
        failed.Update(counts.status());
        return;
      }
      total.users += counts->users;
      total.rows += counts->rows;
      total.targets += counts->targets;
      total.positives += counts->positives;
    }
  };
  std::vector<std::thread> threads;
  const unsigned wanted = flags.threads != 0 ? flags.threads : std::max(1u, std::thread::hardware_concurrency());
  for (unsigned t = 1; t < std::min<size_t>(wanted, shards); ++t) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  if (!failed.ok()) Leave("tokenize", failed);
  return total;
}

// A directory of shards must hold the shards of one run only: a reader takes every file.
void PrepareDirectory(const std::string& directory) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) Leave("tokenize", absl::InvalidArgumentError(absl::StrCat("--out ", directory, ": ", error.message())));
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    if (entry.path().extension() == ".safetensors") std::filesystem::remove(entry.path(), error);
  }
  if (error) Leave("tokenize", absl::InvalidArgumentError(absl::StrCat("--out ", directory, ": ", error.message())));
}

void WriteCases(const ModelText& model, const Flags& flags) {
  const absl::StatusOr<TextFile> file = TextFile::Open(flags.cases);
  if (!file.ok()) Leave("tokenize", file.status());
  const absl::StatusOr<std::vector<GoldenCase>> cases = ParseGoldens(file->text(), flags.cases);
  if (!cases.ok()) Leave("tokenize", cases.status());
  std::map<std::string, std::string> metadata = MetadataOf(model, flags);
  metadata["cases"] = absl::StrCat(cases->size());
  if (auto s = WriteCaseTokens(*cases, model.config.tokenizer, flags.out, metadata); !s.ok()) Leave("tokenize", s);
  std::fprintf(stderr, "%zu cases in %s\n", cases->size(), flags.out.c_str());
}

void Tokenize(const Flags& flags) {
  const int sources = !flags.events.empty() + !flags.store.empty() + !flags.cases.empty();
  if (sources != 1) {
    Leave("tokenize", absl::InvalidArgumentError("one of --events, --store and --cases needed"), kExitUsage);
  }
  const ModelText model = ReadModelConfig(flags.model_config);
  if (!flags.cases.empty()) return WriteCases(model, flags);
  const Corpus corpus = flags.store.empty() ? CorpusOfFiles(flags) : CorpusOfStore(flags);
  PrepareDirectory(flags.out);
  const ShardCounts counts = WriteShards(corpus, model, flags);
  const char* format = flags.json ? "{\"users\": %lu, \"events\": %lu, \"rows\": %lu, \"targets\": %lu, "
                                    "\"positives\": %lu, \"duplicates\": %lu, \"conflicts\": %lu}\n"
                                  : "%lu users, %lu events, %lu rows, %lu targets (%lu positive), %lu duplicates, "
                                    "%lu conflicts\n";
  std::printf(format, counts.users, corpus.events, counts.rows, counts.targets, counts.positives,
              corpus.merged.duplicates, corpus.merged.conflicts);
}

}  // namespace

void AddTokenizeCommand(CLI::App& app) {
  CLI::App* command = app.add_subcommand("tokenize", "Write the token tensors that trainers read");
  auto flags = std::make_shared<Flags>();
  command->footer(kExamples);
  AddImportFlags(command, &flags->import);
  command->add_option("--events", flags->events, "Events as CSV or JSON lines (docs/reference/import-format.md)");
  command->add_option("--items", flags->items, "Items as CSV or JSON lines");
  command->add_option("--store", flags->store, "Read a store's histories and catalog instead of files");
  command->add_option("--namespace", flags->ns, "Namespace in the store")->capture_default_str();
  command->add_option("--model-config", flags->model_config, "model.textproto: its tokenizer is used")->required();
  command->add_option("--out", flags->out, "Directory for the shards; with --cases, the file")->required();
  command->add_option("--as-of", flags->as_of, "Only events before this time exist, microseconds since 1970");
  command->add_option("--shard-users", flags->shard_users, "Users in one shard")
      ->check(CLI::Range(uint64_t{1}, uint64_t{1'000'000}))
      ->capture_default_str();
  command->add_option("--allow-bad", flags->allow_bad, "Go on if at most this many rows are bad")
      ->capture_default_str();
  command->add_option("--cases", flags->cases, "Tokens of golden cases (JSON lines) instead of shards");
  command->add_option("--threads", flags->threads, "0 = all cores")->capture_default_str();
  command->add_flag("--json", flags->json, "Print the counts as JSON");
  command->callback([flags] { Tokenize(*flags); });
}

}  // namespace backstory
