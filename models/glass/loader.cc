#include "models/glass/loader.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "models/glass/config_text.h"
#include "models/manifest.h"
#include "models/safetensors.h"
#include "models/version_files.h"

namespace backstory::glass {
namespace {

constexpr char kConfigName[] = "model.textproto", kItemsName[] = "items.safetensors",
               kQuantiserName[] = "quantiser.safetensors", kGoldensName[] = "goldens.jsonl";

absl::StatusOr<SafetensorsFile> OpenTensors(const VerifiedFiles& files, const std::string& name) {
  const auto file = RequiredFile(files, name);
  if (!file.ok()) return file.status();
  return SafetensorsFile::Parse((*file)->owner, (*file)->size, absl::StrCat(files.directory, "/", name));
}

// The elements of a tensor of this dtype and shape, in the file's memory; nullptr data if `optional` and absent.
template <typename T>
absl::StatusOr<std::span<const T>> View(const SafetensorsFile& file, const std::string& name, DType dtype,
                                        std::vector<int64_t> shape, std::string_view why) {
  const SafetensorsEntry* entry = file.Find(name);
  const auto wrong = [&](const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat(file.source(), ": tensor ", name, ": ", what));
  };
  if (entry == nullptr) return wrong("missing");
  if (entry->dtype != dtype) {
    return wrong(absl::StrCat("expected dtype ", DTypeName(dtype), ", found ", DTypeName(entry->dtype)));
  }
  if (entry->shape != shape) {
    return wrong(absl::StrCat("expected shape ", ShapeText(shape), ", found ", ShapeText(entry->shape),
                              why.empty() ? "" : absl::StrCat(": ", std::string(why))));
  }
  const std::span<const uint8_t> bytes = file.Bytes(*entry);
  if (reinterpret_cast<uintptr_t>(bytes.data()) % alignof(T) != 0) return wrong("is not aligned to its elements");
  return std::span<const T>(reinterpret_cast<const T*>(bytes.data()), bytes.size() / sizeof(T));
}

absl::Status CheckItemTensors(const SafetensorsFile& file, const Config& config) {
  for (const SafetensorsEntry& entry : file.entries()) {
    const bool tiers = entry.name == "item.tier_bin" && config.bins() > 0;
    if (tiers || entry.name == "item.id" || entry.name == "item.sid" || entry.name == "item.prior") continue;
    return absl::InvalidArgumentError(
        absl::StrCat(file.source(), ": tensor ", entry.name, ": the configuration calls for no such tensor"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const Catalogue>> ReadItems(const VerifiedFiles& files, const Config& config,
                                                           const Quantiser& quantiser, std::vector<Sid>* sids) {
  const auto file = OpenTensors(files, kItemsName);
  if (!file.ok()) return file.status();
  if (auto s = CheckItemTensors(*file, config); !s.ok()) return s;
  const SafetensorsEntry* id_entry = file->Find("item.id");
  const int64_t items = id_entry == nullptr || id_entry->shape.size() != 1 ? 0 : id_entry->shape[0];
  constexpr std::string_view kOneEach = "one row per item of item.id";
  const auto ids = View<int64_t>(*file, "item.id", DType::kI64, {items}, "");
  if (!ids.ok()) return ids.status();
  const auto codes = View<uint16_t>(*file, "item.sid", DType::kU16, {items, static_cast<int64_t>(kLevels)}, kOneEach);
  if (!codes.ok()) return codes.status();
  const auto prior = View<float>(*file, "item.prior", DType::kF32, {items}, kOneEach);
  if (!prior.ok()) return prior.status();
  CatalogueInput input;
  if (config.bins() > 0) {
    const auto bins = View<uint8_t>(*file, "item.tier_bin", DType::kU8, {items, config.levels[0]}, kOneEach);
    if (!bins.ok()) return bins.status();
    input.tier_bins = *bins;
  }
  for (size_t i = 0; i < ids->size(); ++i) {
    if (i > 0 && (*ids)[i] <= (*ids)[i - 1]) {
      return absl::InvalidArgumentError(absl::StrCat(file->source(), ": tensor item.id: ", (*ids)[i], " after ",
                                                     (*ids)[i - 1], ", must ascend without repeats"));
    }
    if (!std::isfinite((*prior)[i])) {
      return absl::DataLossError(
          absl::StrCat(file->source(), ": tensor item.prior: of item ", (*ids)[i], " is not finite"));
    }
  }
  sids->resize(ids->size());
  static_assert(sizeof(Sid) == kLevels * sizeof(uint16_t));
  std::memcpy(sids->data(), codes->data(), codes->size_bytes());
  // The same type but for its sign; ids are opaque.
  input.item_ids = {reinterpret_cast<const uint64_t*>(ids->data()), ids->size()};
  input.sids = *sids;
  input.prototypes = quantiser.prototypes();
  input.prior = *prior;
  auto catalogue = Catalogue::Create(config, input);
  if (catalogue.ok()) return std::shared_ptr<const Catalogue>(*std::move(catalogue));
  return absl::Status(catalogue.status().code(), absl::StrCat(file->source(), ": ", catalogue.status().message()));
}

absl::Status ReadQuantiser(const VerifiedFiles& files, const Config& config, TensorMap* tensors,
                           std::optional<Quantiser>* out) {
  const auto file = OpenTensors(files, kQuantiserName);
  if (!file.ok()) return file.status();
  if (auto s = file->AddTo(tensors); !s.ok()) return s;
  auto quantiser = Quantiser::Create(config, *tensors);
  if (!quantiser.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(file->source(), ": ", quantiser.status().message()));
  }
  out->emplace(*std::move(quantiser));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<GoldenCase>> ReadGoldens(const VerifiedFiles& files) {
  const auto file = RequiredFile(files, kGoldensName);
  if (!file.ok()) return file.status();
  const std::string path = absl::StrCat(files.directory, "/", kGoldensName);
  auto goldens = ParseGoldens((*file)->text(), path);
  if (goldens.ok() && goldens->empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": no case, at least one is needed"));
  }
  return goldens;
}

// The network, and what searches with it: whatever it is has met the goldens.
absl::Status ReadNetwork(const VerifiedFiles& files, const LoadOptions& options, LoadedGlass* out) {
  const auto goldens = ReadGoldens(files);
  if (!goldens.ok()) return goldens.status();
  TensorMap tensors;
  if (auto s = ReadWeightFiles(files, &tensors); !s.ok()) return s;
  auto network = Network::Create(out->config, tensors);
  if (!network.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(files.directory, ": ", network.status().message()));
  }
  out->network = *std::move(network);
  out->parameter_bytes = tensors.ParameterCount() * sizeof(float);
  const auto check = [&](const Network* exact) {
    auto report = CheckGoldens(*out->searcher, *out->catalogue, *goldens, exact);
    if (!report.ok()) {
      return absl::Status(report.status().code(), absl::StrCat(files.directory, ": ", report.status().message()));
    }
    out->goldens = *std::move(report);
    return absl::OkStatus();
  };
  out->searcher = MakeCpuSearcher(out->network, options.pool);
  if (auto s = check(nullptr); !s.ok()) return s;
  if (options.precision == Dtype::kF32 && !options.serve_with) return absl::OkStatus();
  const std::shared_ptr<const Network> exact = out->network;
  if (options.precision != Dtype::kF32) {
    auto rounded = Network::Create(out->config, tensors, options.precision);
    if (!rounded.ok()) return rounded.status();
    out->network = *std::move(rounded);
    out->searcher = MakeCpuSearcher(out->network, options.pool);
  }
  if (options.serve_with) {
    auto searcher = options.serve_with(out->config, tensors, out->network, options.pool);
    if (!searcher.ok()) return searcher.status();
    out->searcher = *std::move(searcher);
  }
  return check(exact.get());
}

}  // namespace

absl::StatusOr<std::shared_ptr<const LoadedGlass>> LoadGlassVersion(const std::string& path,
                                                                    const LoadOptions& options) {
  const auto files = VerifyDirectory(path);
  if (!files.ok()) return files.status();
  const auto config_file = RequiredFile(*files, kConfigName);
  if (!config_file.ok()) return config_file.status();
  const std::string config_path = absl::StrCat(path, "/", kConfigName);
  auto config = ConfigFromText((*config_file)->text(), config_path);
  if (!config.ok()) return config.status();
  if (!options.expected_name.empty() && config->name != options.expected_name) {
    return absl::InvalidArgumentError(
        absl::StrCat(config_path, ": name: expected \"", options.expected_name, "\", found \"", config->name, "\""));
  }
  auto loaded = std::make_shared<LoadedGlass>();
  loaded->name = config->name;
  loaded->version = VersionNameOf(path);
  loaded->hash = files->hash;
  loaded->config = *std::move(config);
  TensorMap quantiser_tensors;
  if (auto s = ReadQuantiser(*files, loaded->config, &quantiser_tensors, &loaded->quantiser); !s.ok()) return s;
  std::vector<Sid> sids;
  auto catalogue = ReadItems(*files, loaded->config, *loaded->quantiser, &sids);
  if (!catalogue.ok()) return catalogue.status();
  loaded->catalogue = *std::move(catalogue);
  const std::string sid_version = SidVersion(quantiser_tensors, sids);
  if (sid_version != loaded->config.sid_version) {
    return absl::FailedPreconditionError(absl::StrCat(config_path, ": sid_version is \"", loaded->config.sid_version,
                                                      "\", but SIDs, codebooks and prototypes of this version are \"",
                                                      sid_version, "\": they were made apart"));
  }
  if (auto s = ReadNetwork(*files, options, loaded.get()); !s.ok()) return s;
  return std::shared_ptr<const LoadedGlass>(std::move(loaded));
}

absl::Status SealVersion(const std::string& path, const LoadOptions& options) {
  if (absl::Status s = WriteManifest(path); !s.ok()) return s;
  const auto loaded = LoadGlassVersion(path, options);
  if (loaded.ok()) return absl::OkStatus();
  std::error_code ignored;
  std::filesystem::remove(absl::StrCat(path, "/", std::string(kManifestName)), ignored);
  return loaded.status();
}

bool IsGlassVersion(const std::string& path) {
  std::error_code error;
  return std::filesystem::is_regular_file(absl::StrCat(path, "/", kItemsName), error);
}

}  // namespace backstory::glass
