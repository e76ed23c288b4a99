#include "serving/cli/score_command.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <memory>
#include <optional>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "features/io/import_mapping.h"
#include "nlohmann/json.hpp"
#include "serving/cli/exit_codes.h"
#include "serving/cli/ingest_common.h"
#include "serving/cli/score_input.h"
#include "serving/cli/score_output.h"
#include "serving/cli/score_parts.h"
#include "serving/embedded/embedded_engine.h"
#include "serving/engine/batch/batch_scorer.h"

namespace backstory {
namespace {

using nlohmann::json;

constexpr char kExamples[] = R"(Examples:
  backstory score --store checkpoint --models models/zoo --input rows.csv --output scores.csv
  backstory score --store checkpoint --models models/zoo --version 1 --namespace movielens --input ratings.csv \
      --map user=userId,item=movieId,time=timestamp --time-unit s --keep rating --output scores --resume
Every row is scored as of its own time: events at or after it do not exist for it. The store must not be open in a server:
score on a checkpoint. A run that was killed is gone on with by the same command with --resume.
Exit codes: 0 all scored (or no more bad rows than --max-bad-rows), 1 finished with bad rows, or failed, 2 usage, 4 store or
model damaged, 130 interrupted.)";
constexpr uint64_t kComplaintsMax = 20;
constexpr uint64_t kRowsPerPartMax = 10'000'000;

struct Flags {
  EmbeddedOptions engine;
  std::string input, output, format, time_unit = "us", ns = "default", scene;
  std::vector<std::string> columns, constants, keep, set;
  uint64_t rows_per_part = 100'000;
  std::optional<uint64_t> max_bad_rows;
  bool resume = false, json = false;
};

// What a run is made of, opened and checked before a row is scored.
struct Job {
  std::unique_ptr<ScoreInput> input;
  std::unique_ptr<EmbeddedEngine> engine;
  std::unique_ptr<BatchScorer> scorer;
  std::unique_ptr<ScoreFormat> format;
  std::unique_ptr<ScoreParts> parts;
  std::string file;  // empty: the output is a folder
};

[[noreturn]] void Usage(const std::string& message) { FailCommand(kExitUsage, "score: " + message); }

void CheckUsage(const absl::Status& status, const std::string& flag) {
  if (!status.ok()) Usage(flag + std::string(status.message()));
}

void CheckScore(const absl::Status& status) {
  if (!status.ok()) Leave("score", status);
}

ScoreMapping MappingOf(const Flags& flags) {
  ScoreMapping mapping;
  for (const std::string& pairs : flags.columns) CheckUsage(AddScoreColumns(pairs, &mapping), "--map ");
  for (const std::string& pairs : flags.constants) CheckUsage(AddScoreConstants(pairs, &mapping), "--default ");
  for (const std::string& names : flags.keep) {
    for (const auto& name : absl::StrSplit(names, ',', absl::SkipEmpty())) mapping.keep.emplace_back(name);
  }
  const absl::StatusOr<int64_t> unit = TimeUnitUs(flags.time_unit);
  CheckUsage(unit.status(), "--time-unit: ");
  mapping.time_unit_us = *unit;
  return mapping;
}

std::map<std::string, std::string> Parameters(const Flags& flags) {
  std::map<std::string, std::string> parameters;
  for (const std::string& text : flags.set) {
    const size_t equals = text.find('=');
    if (equals == std::string::npos) Usage("--set " + text + ": want name=value");
    const std::string name = text.substr(0, equals), value = text.substr(equals + 1);
    CheckUsage(ParameterRegistry::Builtin().Parse(name, value).status(), "--set ");
    if (!parameters.emplace(name, value).second) Usage("--set " + name + " is given twice");
  }
  return parameters;
}

// "csv" or "jsonl".
std::string FormatOf(const Flags& flags, bool input_is_csv) {
  const std::string by_name = flags.output.ends_with(".csv") ? "csv" : flags.output.ends_with(".jsonl") ? "jsonl" : "";
  if (by_name.empty()) return !flags.format.empty() ? flags.format : input_is_csv ? "csv" : "jsonl";
  if (!flags.format.empty() && flags.format != by_name)
    Usage("--format " + flags.format + ": " + flags.output + " says " + by_name);
  return by_name;
}

// All that decides rows and scores; threads and cache do not.
json Manifest(const Flags& flags, const ScoreMapping& mapping, const std::string& format, Job* job) {
  std::map<std::string, std::string> parameters;
  for (const EffectiveParameter& p : job->engine->engine()->parameters().Report()) parameters[p.name] = p.value;
  const absl::StatusOr<HistoryStore::Stats> stats = job->engine->engine()->store().GetStats();
  CheckScore(stats.status());
  const ServedModel& model = job->scorer->model();
  return {{"format", format},
          {"input", {{"bytes", job->input->bytes()}, {"xxh3_64", job->input->Fingerprint()}}},
          {"columns",
           {{"fields", mapping.columns},
            {"defaults", mapping.constants},
            {"time_unit", flags.time_unit},
            {"keep", mapping.keep}}},
          {"namespace", flags.ns},
          {"scene", flags.scene},
          {"parameters", parameters},
          {"model", model.name + "/" + model.version},
          {"model_hash", model.content_hash},
          {"calibration", model.calibration.config_version()},
          {"store",
           {{"users", stats->users},
            {"events", stats->events},
            {"items", job->engine->engine()->catalog().Size(flags.ns)}}},
          {"rows_per_part", flags.rows_per_part}};
}

void OpenEngine(const Flags& flags, Job* job) {
  EmbeddedOptions options = flags.engine;
  options.parameters = Parameters(flags);
  auto engine = EmbeddedEngine::Open(options);
  CheckScore(engine.status());
  job->engine = *std::move(engine);
  BatchOptions batch;
  batch.model = job->engine->model();
  batch.ns = flags.ns;
  batch.scene = flags.scene;
  auto scorer = BatchScorer::Create(job->engine->engine(), std::move(batch));
  CheckUsage(scorer.status(), "");
  job->scorer = *std::move(scorer);
}

Job OpenJob(const Flags& flags) {
  Job job;
  const ScoreMapping mapping = MappingOf(flags);
  absl::StatusOr<ScoreInput> input = ScoreInput::Open(flags.input, mapping);
  if (absl::IsInvalidArgument(input.status())) Usage(std::string(input.status().message()));
  CheckScore(input.status());
  job.input = std::make_unique<ScoreInput>(*std::move(input));
  const std::string format = FormatOf(flags, job.input->csv());
  if (flags.output.ends_with("." + format)) job.file = flags.output;
  OpenEngine(flags, &job);
  job.format = std::make_unique<ScoreFormat>(format == "csv", job.scorer->model().model->config().tasks, mapping.keep);
  std::set<std::string> names;
  for (const std::string& name : job.format->columns()) {
    if (!names.insert(name).second) Usage("--keep " + name + ": the output has a column of that name");
  }
  auto parts = ScoreParts::Open(job.file.empty() ? flags.output : job.file + ".parts",
                                Manifest(flags, mapping, format, &job), job.format->extension(), flags.resume);
  CheckScore(parts.status());
  job.parts = std::make_unique<ScoreParts>(*std::move(parts));
  return job;
}

void Complain(const std::string& path, const std::vector<BadScoreRow>& bad, uint64_t before) {
  for (size_t i = 0; i < bad.size() && before + i < kComplaintsMax; ++i) {
    const std::string column = bad[i].column.empty() ? "" : bad[i].column + ": ";
    std::cerr << path << ":" << bad[i].line << ": " << column << bad[i].reason << "\n";
  }
}

ScoreCounts CountsOf(const ScoreChunk& chunk, const BatchScores& scores, uint64_t bad) {
  ScoreCounts counts{chunk.rows(), chunk.rows() - bad, bad, 0, 0};
  for (const uint8_t flag : scores.flags) {
    counts.unknown_users += (flag & kUnknownUser) != 0;
    counts.unknown_items += (flag & kUnknownItem) != 0;
  }
  return counts;
}

// Reads, scores and writes one part; `bar` hears of bytes of the input.
ScoreCounts ScorePart(const Flags& flags, Job* job, size_t part, uint64_t bad_before, ProgressBar* bar) {
  const uint64_t total = job->input->bytes(), begin = total - job->input->bytes_left();
  const std::unique_ptr<ScoreChunk> chunk = job->input->Read(flags.rows_per_part);
  const uint64_t bytes = total - job->input->bytes_left() - begin;
  const BatchRows& columns = chunk->Columns();
  const auto progress = [&](size_t done) {
    (*bar)(begin + static_cast<uint64_t>(static_cast<double>(bytes) * static_cast<double>(done) /
                                         static_cast<double>(std::max<size_t>(1, columns.rows))),
           total);
  };
  const absl::StatusOr<BatchScores> scores = job->scorer->Score(columns, {}, progress);
  CheckScore(scores.status());
  const std::vector<BadScoreRow> bad = chunk->Bad(scores->bad);
  const ScoreCounts counts = CountsOf(*chunk, *scores, bad.size());
  if (bad_before < kComplaintsMax && !bad.empty()) bar->Clear();
  Complain(flags.input, bad, bad_before);
  absl::Status status =
      job->parts->Write(part, job->format->Rows(*chunk, *scores), bad.empty() ? "" : job->format->BadRows(bad), counts);
  if (!status.ok()) {
    bar->Clear();
    FailCommand(ExitCodeOf(status), absl::StrCat("score: ", status.message(), "; --resume goes on from here"));
  }
  return counts;
}

void Report(const Flags& flags, const Job& job, json summary, uint64_t resumed, double seconds) {
  const uint64_t scored = summary["scored"], bad = summary["bad_rows"];
  if (flags.json) {
    summary["resumed_parts"] = resumed;
    summary["seconds"] = seconds;
    summary["output"] = flags.output;
    std::cout << summary.dump() << "\n";
    return;
  }
  std::cout << absl::StrFormat(
      "%d rows scored with %s in %.1f s; %d bad rows; %d of unknown users, %d of unknown items; %s\n", scored,
      summary["model"].get<std::string>(), seconds, bad, summary["unknown_users"].get<uint64_t>(),
      summary["unknown_items"].get<uint64_t>(), job.file.empty() ? flags.output : job.file);
}

void Run(const Flags& flags) {
  if (flags.rows_per_part == 0 || flags.rows_per_part > kRowsPerPartMax) {
    Usage(absl::StrCat("--rows-per-part must be within 1..", kRowsPerPartMax));
  }
  Job job = OpenJob(flags);
  const auto start = std::chrono::steady_clock::now();
  ProgressBar bar("rows ");
  ScoreCounts all;
  size_t part = 0, resumed = 0;
  do {  // an empty input has one empty part, so that the output has its columns
    const std::optional<ScoreCounts> there = job.parts->Find(part);
    if (there.has_value()) {
      job.input->Skip(flags.rows_per_part);
      ++resumed;
    }
    all.Add(there.has_value() ? *there : ScorePart(flags, &job, part, all.bad, &bar));
    ++part;
    if (flags.max_bad_rows.has_value() && all.bad > *flags.max_bad_rows) {
      bar.Clear();
      FailCommand(kExitFailed, absl::StrCat("score: ", all.bad, " bad rows in the first ", all.rows,
                                            ", --max-bad-rows ", *flags.max_bad_rows));
    }
  } while (!job.input->AtEnd());
  bar.Clear();
  if (!job.input->unused().empty()) {
    std::cerr << flags.input << ": columns not used: " << absl::StrJoin(job.input->unused(), ", ") << "\n";
  }
  const ServedModel& model = job.scorer->model();
  const json summary = {{"rows", all.rows},
                        {"scored", all.scored},
                        {"bad_rows", all.bad},
                        {"unknown_users", all.unknown_users},
                        {"unknown_items", all.unknown_items},
                        {"parts", part},
                        {"model", model.name + "/" + model.version}};
  CheckScore(job.parts->Succeed(summary));
  if (!job.file.empty()) {
    CheckScore(job.parts->Join(part, job.file, job.format->header().size(), job.format->bad_header().size()));
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  Report(flags, job, summary, resumed, seconds);
  if (all.bad > flags.max_bad_rows.value_or(0)) {
    FailCommand(kExitFailed, absl::StrCat("score: ", all.bad, " bad rows, listed in bad-rows files beside the scores"));
  }
}

void AddEngineFlags(CLI::App* command, Flags* flags) {
  command->add_option("--store", flags->engine.store, "Opened read-only: a checkpoint, or a store no server has open")
      ->required();
  command->add_option("--models", flags->engine.models, "Model repository")->required();
  command->add_option("--model", flags->engine.model.model, "Default: the only one there");
  auto* version = command->add_option("--version", flags->engine.model.version, "Default: by label");
  command->add_option("--label", flags->engine.model.label, "Default: stable, else the newest version")
      ->excludes(version);
  command->add_option("--set", flags->set, "NAME=VALUE of a parameter; repeatable");
  command->add_option("--threads", flags->engine.threads, "That prepare and score; 0: one per core")
      ->check(CLI::Range(0, 256))
      ->capture_default_str();
  command->add_option("--cache-bytes", flags->engine.cache_bytes, "Memory for user states")
      ->check(CLI::Range(uint64_t{1} << 20, uint64_t{1} << 43))
      ->capture_default_str();
}

}  // namespace

void AddScoreCommand(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand("score", "Score rows of CSV or JSON lines, each as of its own time");
  command->footer(kExamples);
  AddEngineFlags(command, flags.get());
  command->add_option("--input", flags->input, "Rows: .csv, or .jsonl, .ndjson, .json with one object a line")
      ->required();
  command->add_option("--output", flags->output, "A file ending in .csv or .jsonl, else a folder of parts")->required();
  command->add_option("--format", flags->format, "csv or jsonl; default: as the output's name, else as the input")
      ->check(CLI::IsMember({"csv", "jsonl"}));
  command->add_option("--map", flags->columns, "FIELD=COLUMN,...: where a field is, if not in the column of its name");
  command->add_option("--default", flags->constants, "FIELD=VALUE,...: of rows whose column is absent or empty");
  command->add_option("--time-unit", flags->time_unit, "s, ms or us: of every time in the input")
      ->capture_default_str();
  command->add_option("--namespace", flags->ns, "Of rows without one")->capture_default_str();
  command->add_option("--scene", flags->scene, "Of rows without one");
  command->add_option("--keep", flags->keep, "COLUMN,...: input columns to copy to the output");
  command->add_option("--rows-per-part", flags->rows_per_part, "What a killed run loses at most")
      ->capture_default_str();
  command->add_flag("--resume", flags->resume, "Go on with what a killed run left; start if there is nothing");
  command->add_option("--max-bad-rows", flags->max_bad_rows, "More end the run; default: go on, and exit with 1");
  command->add_flag("--json", flags->json, "One JSON object on standard output");
  command->callback([flags] { Run(*flags); });
}

}  // namespace backstory
