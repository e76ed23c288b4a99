// Checks of columns and rows: every message names the column, the value and the limit.
#include <cmath>
#include <limits>
#include <set>

#include "absl/strings/str_cat.h"
#include "serving/engine/batch/batch_plan.h"

namespace backstory {
namespace {

constexpr int64_t kTimeUsMax = (int64_t{1} << 62) - 1;  // what the history store takes

std::string NameOf(std::string_view prefix, const std::string& name) { return absl::StrCat(std::string(prefix), name); }

absl::Status Invalid(std::string_view column, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("column ", std::string(column), ": ", what));
}

absl::Status CheckLength(std::string_view column, size_t values, size_t rows, bool required = false) {
  if (values == rows || (values == 0 && !required)) return absl::OkStatus();
  if (values == 0) return Invalid(column, "not given, but needed");
  return Invalid(column, absl::StrCat(values, " values for ", rows, " rows"));
}

size_t Length(const NumberFeature& feature) {
  return std::visit([](const auto& values) { return values.size(); }, feature.values);
}
size_t Length(const TextFeature& feature) { return feature.values.size(); }

template <typename Feature>
absl::Status CheckFeatures(std::string_view prefix, const std::vector<Feature>& features, size_t rows,
                           std::set<std::string>* names) {
  for (const Feature& feature : features) {
    const std::string column = NameOf(prefix, feature.name);
    if (feature.name.empty() || feature.name.size() > kFeatureNameBytesMax) {
      return Invalid(column, absl::StrCat("a name of 1 to ", kFeatureNameBytesMax, " bytes needed"));
    }
    if (!names->insert(feature.name).second) return Invalid(column, "the name is given twice");
    if (auto status = CheckLength(column, Length(feature), rows, true); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CheckCount(const char* what, size_t count, size_t limit) {
  if (count <= limit) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(count, " ", what, ", the limit is ", limit));
}

std::string LengthProblem(std::string_view text, size_t limit) {
  return text.size() <= limit ? "" : absl::StrCat(text.size(), " bytes, the limit is ", limit);
}

std::string TimeProblem(const WholeColumn<int64_t>& column, size_t row, int64_t least) {
  if (!column.has(row)) return "";
  const int64_t value = column.values[row];
  if (value >= least && value <= kTimeUsMax) return "";
  return absl::StrCat(value, ", must be within ", least, "..", kTimeUsMax, " microseconds");
}

template <typename T>
std::string NumberProblem(T value, bool as_float) {
  if (!std::isfinite(static_cast<double>(value))) return absl::StrCat(value, " is not finite");
  if (as_float && !std::isfinite(static_cast<float>(value))) return absl::StrCat(value, " is too big for 32 bits");
  return "";
}

std::string NumberProblem(const NumberFeature& feature, size_t row, bool as_float) {
  if (!feature.valid[row]) return "";
  return std::visit([&](const auto& values) { return NumberProblem(values[row], as_float); }, feature.values);
}

}  // namespace

absl::Status CheckBatchColumns(const BatchRows& rows) {
  if (rows.rows > std::numeric_limits<uint32_t>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat(rows.rows, " rows in one call, the limit is ", std::numeric_limits<uint32_t>::max()));
  }
  const struct {
    std::string_view name;
    size_t values;
    bool required;
  } columns[] = {
      {kBatchUser, rows.users.size(), true},
      {kBatchItem, rows.items.values.size(), true},
      {kBatchTime, rows.times_us.values.size(), true},
      {kBatchAsOf, rows.as_of_us.values.size(), false},
      {kBatchKnownBy, rows.known_by_us.values.size(), false},
      {kBatchNamespace, rows.namespaces.size(), false},
      {kBatchScene, rows.scenes.size(), false},
      {kBatchRequestId, rows.request_ids.values.size(), false},
  };
  for (const auto& column : columns) {
    if (auto status = CheckLength(column.name, column.values, rows.rows, column.required); !status.ok()) return status;
  }
  std::set<std::string> request, candidate;
  absl::Status status = CheckFeatures(kBatchRequestNumbers, rows.request_numbers, rows.rows, &request);
  status.Update(CheckFeatures(kBatchRequestTexts, rows.request_texts, rows.rows, &request));
  status.Update(CheckFeatures(kBatchCandidateNumbers, rows.candidate_numbers, rows.rows, &candidate));
  status.Update(CheckFeatures(kBatchCandidateTexts, rows.candidate_texts, rows.rows, &candidate));
  status.Update(CheckCount("request features", request.size(), kRequestFeaturesMax));
  status.Update(CheckCount("candidate features", candidate.size(), kCandidateColumnsMax));
  return status;
}

BadBatchRow CheckBatchRow(const BatchRows& rows, size_t row, const BatchOptions& options) {
  const auto bad = [row](std::string_view column, std::string reason) {
    return BadBatchRow{row, std::string(column), std::move(reason)};
  };
  if (rows.users[row].empty()) return bad(kBatchUser, "missing");
  if (auto p = LengthProblem(rows.users[row], kUnitBytesMax); !p.empty()) return bad(kBatchUser, std::move(p));
  if (!rows.items.has(row)) return bad(kBatchItem, "missing");
  if (!rows.times_us.has(row)) return bad(kBatchTime, "missing");
  if (auto p = TimeProblem(rows.times_us, row, 1); !p.empty()) return bad(kBatchTime, std::move(p));
  if (auto p = TimeProblem(rows.as_of_us, row, 0); !p.empty()) return bad(kBatchAsOf, std::move(p));
  if (auto p = TimeProblem(rows.known_by_us, row, 0); !p.empty()) return bad(kBatchKnownBy, std::move(p));
  if (!rows.namespaces.empty() && !rows.namespaces[row].empty() && rows.namespaces[row] != options.ns) {
    const absl::Status status = ValidateNamespace(std::string(rows.namespaces[row].substr(0, 128)));
    if (!status.ok()) return bad(kBatchNamespace, std::string(status.message()));
  }
  if (!rows.scenes.empty()) {
    if (auto p = LengthProblem(rows.scenes[row], kSceneBytesMax); !p.empty()) return bad(kBatchScene, std::move(p));
  }
  for (const auto& f : rows.request_numbers) {
    if (auto p = NumberProblem(f, row, false); !p.empty()) return bad(NameOf(kBatchRequestNumbers, f.name), p);
  }
  for (const auto& f : rows.candidate_numbers) {
    if (auto p = NumberProblem(f, row, true); !p.empty()) return bad(NameOf(kBatchCandidateNumbers, f.name), p);
  }
  for (const auto& f : rows.request_texts) {
    auto p = LengthProblem(f.values[row], kFeatureTextBytesMax);
    if (!p.empty()) return bad(NameOf(kBatchRequestTexts, f.name), std::move(p));
  }
  for (const auto& f : rows.candidate_texts) {
    auto p = LengthProblem(f.values[row], kFeatureTextBytesMax);
    if (!p.empty()) return bad(NameOf(kBatchCandidateTexts, f.name), std::move(p));
  }
  return {};
}

}  // namespace backstory
