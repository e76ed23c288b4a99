#include "models/calibration.h"

#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "backstory/model/v1/model.pb.h"
#include "google/protobuf/text_format.h"
#include "models/text_proto.h"

namespace backstory {
namespace {

namespace pb = ::backstory::model::v1;

constexpr size_t kSceneBytesMax = 64;
constexpr float kProbabilityMin = 1e-7f;

// Over version and entries as hexadecimal floats, one line each: what the digest of a calibration file covers.
std::string ContentDigest(const pb::Calibration& message) {
  std::string content = absl::StrCat(message.version(), "\n");
  for (const pb::Platt& entry : message.entries()) {
    char numbers[80];
    std::snprintf(numbers, sizeof(numbers), "%a %a", entry.has_a() ? entry.a() : 1.0, entry.has_b() ? entry.b() : 0.0);
    absl::StrAppend(&content, entry.scene(), "\t", entry.task(), "\t", numbers, "\n");
  }
  return absl::StrCat(absl::Hex(XXH3_64bits(content.data(), content.size()), absl::kZeroPad16));
}

absl::Status CheckEntry(const pb::Platt& entry) {
  if (entry.scene().size() > kSceneBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("scene exceeds ", kSceneBytesMax, " bytes"));
  }
  if (entry.has_a() && !(std::isfinite(entry.a()) && entry.a() > 0)) {
    return absl::InvalidArgumentError(absl::StrCat("a: ", entry.a(), " is not finite and > 0"));
  }
  if (!std::isfinite(entry.b())) return absl::InvalidArgumentError(absl::StrCat("b: ", entry.b(), " is not finite"));
  return absl::OkStatus();
}

absl::Status CheckDigest(const pb::Calibration& message, bool required) {
  if (message.digest().empty()) {
    if (!required) return absl::OkStatus();
    return absl::DataLossError("digest: missing, and MANIFEST does not list the file; add it with model calibrate");
  }
  if (message.digest() == ContentDigest(message)) return absl::OkStatus();
  return absl::DataLossError("digest: does not match the content");
}

}  // namespace

Calibration Calibration::Make(uint32_t version, Entries entries) {
  Calibration result;
  result.version_ = version;
  result.entries_ = std::move(entries);
  return result;
}

Platt Calibration::Find(std::string_view scene, int task) const {
  if (task < 0 || static_cast<size_t>(task) >= entries_.size()) return {};
  const auto& scenes = entries_[static_cast<size_t>(task)];
  auto it = scenes.find(scene);
  if (it == scenes.end()) it = scenes.find(std::string_view());
  return it == scenes.end() ? Platt{} : it->second;
}

float Calibration::Probability(std::string_view scene, int task, float logit) const {
  const Platt platt = Find(scene, task);
  const double p = 1.0 / (1.0 + std::exp(-(platt.a * static_cast<double>(logit) + platt.b)));
  return std::clamp(static_cast<float>(p), kProbabilityMin, 1 - kProbabilityMin);
}

absl::StatusOr<Calibration> Calibration::FromText(std::string_view text, std::string_view source_name,
                                                  std::span<const std::string> tasks, uint32_t expected_version,
                                                  bool require_digest) {
  const std::string source(source_name);
  if (text.size() > kCalibrationBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(source, ": exceeds ", kCalibrationBytesMax, " bytes"));
  }
  pb::Calibration message;
  if (absl::Status s = ParseTextProto(text, source, &message); !s.ok()) return s;
  if (expected_version != kAnyVersion && message.version() != expected_version) {
    return absl::InvalidArgumentError(
        absl::StrCat(source, ": version: ", message.version(), ", the file name says ", expected_version));
  }
  if (static_cast<size_t>(message.entries_size()) > kCalibrationEntriesMax) {
    return absl::InvalidArgumentError(absl::StrCat(source, ": entries: more than ", kCalibrationEntriesMax));
  }
  Calibration result;
  result.version_ = message.version();
  result.entries_.resize(tasks.size());
  for (const pb::Platt& entry : message.entries()) {
    const std::string where =
        absl::StrCat(source, ": entry of scene \"", entry.scene(), "\", task \"", entry.task(), "\": ");
    const auto task = std::find(tasks.begin(), tasks.end(), entry.task());
    if (task == tasks.end()) return absl::InvalidArgumentError(absl::StrCat(where, "the model has no such task"));
    if (absl::Status s = CheckEntry(entry); !s.ok()) return absl::Status(s.code(), absl::StrCat(where, s.message()));
    auto& scenes = result.entries_[static_cast<size_t>(task - tasks.begin())];
    const Platt platt{entry.has_a() ? entry.a() : 1.0, entry.b()};
    if (!scenes.emplace(entry.scene(), platt).second) return absl::InvalidArgumentError(absl::StrCat(where, "twice"));
  }
  if (absl::Status s = CheckDigest(message, require_digest); !s.ok()) {
    return absl::Status(s.code(), absl::StrCat(source, ": ", s.message()));
  }
  return result;
}

std::string Calibration::ToText(std::span<const std::string> tasks) const {
  pb::Calibration message;
  message.set_version(version_);
  for (size_t task = 0; task < entries_.size() && task < tasks.size(); ++task) {
    for (const auto& [scene, platt] : entries_[task]) {
      pb::Platt* entry = message.add_entries();
      entry->set_scene(scene);
      entry->set_task(tasks[task]);
      entry->set_a(platt.a);
      entry->set_b(platt.b);
    }
  }
  message.set_digest(ContentDigest(message));
  std::string text;
  google::protobuf::TextFormat::PrintToString(message, &text);
  return text;
}

}  // namespace backstory
