#include "serving/cli/model_command.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kernels/thread_pool.h"
#include "models/glass/loader.h"
#include "models/glass/random_version.h"
#include "models/grab/init_random.h"
#include "models/grab/loader.h"
#include "models/grab/random_version.h"
#include "models/mapped_file.h"
#include "nlohmann/json.hpp"
#include "serving/cli/model_report.h"

namespace backstory {
namespace {

using nlohmann::json;

constexpr const char* kExamples = R"(
Examples:
  backstory model inspect models/grab-ml/1
  backstory model verify models/grab-ml/1 --json
  backstory model init-random grab-256 --seed 7 --out models/grab-256/1
  backstory model init-random glass-released --items 10000 --out models/glass-released/1
  backstory model seal models/grab-ml/2
  backstory model calibrate models/grab-ml/1 platt.textproto

Exit codes: 0 done, 1 failed (a golden case differs, the output exists), 2 usage, 3 configuration or tensors invalid,
4 a file is damaged, 5 storage unavailable.)";

struct Flags {
  std::string path, preset, out, file;
  uint64_t seed = 1;
  int weight_files = 1;
  size_t items = 10'000;
  unsigned threads = 0;
  bool json = false, tensors = false;
  std::string precision = "f32";

  Dtype dtype() const { return precision == "bf16" ? Dtype::kBf16 : Dtype::kF32; }
};

int ExitCode(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      return 3;
    case absl::StatusCode::kDataLoss:
      return 4;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kResourceExhausted:
      return 5;
    default:
      return 1;
  }
}

[[noreturn]] void Fail(const std::string& command, const absl::Status& status) {
  std::fprintf(stderr, "backstory model %s: %s\n", command.c_str(), std::string(status.message()).c_str());
  throw CLI::RuntimeError(ExitCode(status));
}

void Print(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

std::unique_ptr<ThreadPool> MakePool(const Flags& flags) {
  const unsigned threads = flags.threads != 0 ? flags.threads : std::max(1u, std::thread::hardware_concurrency());
  return std::make_unique<ThreadPool>(threads);
}

void LoadAndPrintGenerative(const std::string& command, const Flags& flags, const std::string& path) {
  const auto pool = MakePool(flags);
  const auto loaded = glass::LoadGlassVersion(path, {.pool = pool.get(), .precision = flags.dtype()});
  if (!loaded.ok()) Fail(command, loaded.status());
  const glass::LoadedGlass& version = **loaded;
  const glass::GoldenReport& goldens = version.goldens;
  const double allowed = flags.dtype() == Dtype::kBf16 ? glass::kGoldenToleranceBf16 : glass::kGoldenTolerance;
  if (flags.json) {
    return Print(json({{"path", path},
                       {"name", version.name},
                       {"version", version.version},
                       {"content_hash", version.hash},
                       {"kind", "generative"},
                       {"sid_version", version.config.sid_version},
                       {"parameter_bytes", version.parameter_bytes},
                       {"items", version.catalogue->size()},
                       {"sids", version.catalogue->trie().size()},
                       {"decode_bytes", version.catalogue->decode_bytes()},
                       {"tier_bytes", version.catalogue->tier_bytes()},
                       {"goldens",
                        {{"cases", goldens.cases},
                         {"beams", goldens.beams},
                         {"worst", goldens.worst},
                         {"worst_case", goldens.worst_case},
                         {"tolerance", allowed}}}})
                     .dump() +
                 "\n");
  }
  Print(absl::StrFormat("%s: %s version %s, content %s, generative, sids %s\n", path, version.name, version.version,
                        version.hash, version.config.sid_version));
  Print(absl::StrFormat(
      "catalogue: %d items, %d semantic IDs, %.1f bytes an item to decode, %.1f of tiers\n", version.catalogue->size(),
      version.catalogue->trie().size(),
      static_cast<double>(version.catalogue->decode_bytes()) / static_cast<double>(version.catalogue->size()),
      static_cast<double>(version.catalogue->tier_bytes()) / static_cast<double>(version.catalogue->size())));
  Print(absl::StrFormat(
      "goldens: %d cases, %d beams, largest difference of a log-probability %.2g (allowed %.2g) at %s\n", goldens.cases,
      goldens.beams, goldens.worst, allowed, goldens.worst_case));
}

void Inspect(const Flags& flags) {
  if (glass::IsGlassVersion(flags.path)) return LoadAndPrintGenerative("inspect", flags, flags.path);
  const auto files = grab::ReadVersion(flags.path);
  if (!files.ok()) Fail("inspect", files.status());
  const auto model = grab::CreateModel(files->config, files->tensors, nullptr);
  if (!model.ok()) Fail("inspect", model.status());
  const std::string& state_id = (*model)->state_id();
  Print(flags.json ? VersionJson(*files, state_id).dump() + "\n" : VersionText(*files, state_id, flags.tensors));
}

void PrintLoaded(const Flags& flags, const grab::LoadedGrab& loaded, const std::string& path) {
  const GoldenReport& goldens = loaded.goldens;
  const double allowed = loaded.precision == Dtype::kBf16 ? kGoldenToleranceBf16 : kGoldenTolerance;
  if (flags.json) {
    const json out = {{"path", path},
                      {"name", loaded.name},
                      {"version", loaded.version},
                      {"content_hash", loaded.hash},
                      {"state_id", loaded.model->state_id()},
                      {"goldens",
                       {{"cases", goldens.cases},
                        {"logits", goldens.logits},
                        {"worst", goldens.worst},
                        {"worst_case", goldens.worst_case},
                        {"tolerance", allowed}}}};
    return Print(out.dump() + "\n");
  }
  Print(absl::StrFormat("%s: %s version %s, content %s, state %s\n", path, loaded.name, loaded.version, loaded.hash,
                        loaded.model->state_id()));
  Print(absl::StrFormat("goldens: %d cases, %d logits, largest difference %.2g of the scale (allowed %.2g) at %s\n",
                        goldens.cases, goldens.logits, goldens.worst, allowed, goldens.worst_case));
}

void LoadAndPrint(const std::string& command, const Flags& flags, const std::string& path) {
  if (glass::IsGlassVersion(path)) return LoadAndPrintGenerative(command, flags, path);
  const auto pool = MakePool(flags);
  const auto loaded = grab::LoadGrabVersion(path, {.pool = pool.get(), .precision = flags.dtype()});
  if (!loaded.ok()) Fail(command, loaded.status());
  PrintLoaded(flags, **loaded, path);
}

void Seal(const Flags& flags) {
  const auto pool = MakePool(flags);
  const absl::Status sealed = glass::IsGlassVersion(flags.path) ? glass::SealVersion(flags.path, {.pool = pool.get()})
                                                                : grab::SealVersion(flags.path, {.pool = pool.get()});
  if (!sealed.ok()) Fail("seal", sealed);
  LoadAndPrint("seal", flags, flags.path);
}

void InitRandomGenerative(const Flags& flags, const glass::Config& config) {
  const absl::Status written =
      glass::WriteRandomVersion(config, flags.items, static_cast<uint32_t>(flags.seed), flags.out);
  if (!written.ok()) Fail("init-random", written);
  LoadAndPrint("init-random", flags, flags.out);
}

void InitRandom(const Flags& flags) {
  if (const auto generative = glass::PresetConfig(flags.preset); generative.ok()) {
    return InitRandomGenerative(flags, *generative);
  }
  const auto config = grab::PresetConfig(flags.preset);
  if (!config.ok()) {
    std::fprintf(stderr, "backstory model init-random: %s, %s\n", std::string(config.status().message()).c_str(),
                 absl::StrJoin(glass::PresetNames(), ", ").c_str());
    throw CLI::RuntimeError(2);
  }
  const auto pool = MakePool(flags);
  const grab::RandomVersionOptions options{.seed = flags.seed, .weight_files = flags.weight_files, .pool = pool.get()};
  if (absl::Status s = grab::WriteRandomVersion(*config, options, flags.out); !s.ok()) Fail("init-random", s);
  LoadAndPrint("init-random", flags, flags.out);
}

void Calibrate(const Flags& flags) {
  if (glass::IsGlassVersion(flags.path)) {
    Fail("calibrate", absl::InvalidArgumentError(
                          absl::StrCat(flags.path,
                                       ": a generative version has no calibration; calibrate the ranking model "
                                       "that its items are passed through")));
  }
  const auto files = grab::ReadVersion(flags.path);
  if (!files.ok()) Fail("calibrate", files.status());
  const auto text = MapFile(flags.file);
  if (!text.ok()) Fail("calibrate", text.status());
  const auto given =
      Calibration::FromText(text->text(), flags.file, files->config.tasks, Calibration::kAnyVersion, false);
  if (!given.ok()) Fail("calibrate", given.status());
  const auto number = grab::AddCalibration(flags.path, given->entries(), files->config.tasks);
  if (!number.ok()) Fail("calibrate", number.status());
  const std::string written = absl::StrCat(flags.path, "/calibration/", *number, ".textproto");
  Print(flags.json ? json({{"calibration", *number}, {"file", written}}).dump() + "\n" : written + "\n");
}

void AddCommon(CLI::App* command, const std::shared_ptr<Flags>& flags) {
  command->add_flag("--json", flags->json, "Print one JSON object instead of text");
  command->add_option("--threads", flags->threads, "Threads for scoring goldens; 0 = one per core")
      ->check(CLI::Range(0, 1024));
}

void AddPath(CLI::App* command, const std::shared_ptr<Flags>& flags) {
  command->add_option("version", flags->path, "Version directory: <repository>/<model>/<version>")->required();
}

}  // namespace

void AddModelCommand(CLI::App& app) {
  CLI::App* model = app.add_subcommand("model", "Inspect, verify and make versions of models");
  model->require_subcommand(1);
  model->footer(kExamples);
  const auto add = [&](const char* name, const char* what, void (*run)(const Flags&), auto... options) {
    const auto flags = std::make_shared<Flags>();
    CLI::App* command = model->add_subcommand(name, what);
    (options(command, flags), ...);
    AddCommon(command, flags);
    command->footer(kExamples);
    command->callback([flags, run] { run(*flags); });
  };
  add("inspect", "Show configuration, tensors, size and cost of a version", Inspect, AddPath,
      [](CLI::App* command, const std::shared_ptr<Flags>& flags) {
        command->add_flag("--tensors", flags->tensors, "List every tensor with its shape");
      });
  add(
      "verify", "Load a version as the server would: files, shapes, goldens",
      [](const Flags& flags) { LoadAndPrint("verify", flags, flags.path); }, AddPath,
      [](CLI::App* command, const std::shared_ptr<Flags>& flags) {
        command->add_option("--precision", flags->precision, "Score the goldens as a server with this parameter would")
            ->check(CLI::IsMember({"f32", "bf16"}))
            ->capture_default_str();
      });
  add("seal", "Check a directory that lacks only MANIFEST, then write MANIFEST", Seal, AddPath);
  add("calibrate", "Add a calibration to a version and print its file", Calibrate, AddPath,
      [](CLI::App* command, const std::shared_ptr<Flags>& flags) {
        command->add_option("file", flags->file, "Calibration as protobuf text; version and digest are set here")
            ->required();
      });
  add("init-random", "Make a version with random weights, for load tests", InitRandom,
      [](CLI::App* command, const std::shared_ptr<Flags>& flags) {
        command
            ->add_option("preset", flags->preset,
                         absl::StrCat("One of ", absl::StrJoin(grab::PresetNames(), ", "), ", ",
                                      absl::StrJoin(glass::PresetNames(), ", ")))
            ->required();
        command->add_option("--out", flags->out, "Version directory to make; must not exist or be empty")->required();
        command->add_option("--seed", flags->seed, "Seed of the weights")->capture_default_str();
        command->add_option("--items", flags->items, "Items of a generative version, ids 1..N")
            ->check(CLI::Range(1, 10'000'000))
            ->capture_default_str();
        command->add_option("--weight-files", flags->weight_files, "Number of weight files of a ranking version")
            ->check(CLI::Range(1, 99))
            ->capture_default_str();
      });
}

}  // namespace backstory
