#include "serving/cli/score_chunk.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "features/io/event_json.h"
#include "features/io/field_text.h"

namespace backstory {

const std::array<std::string_view, kScoreFields> kScoreFieldNames = {
    kBatchUser, kBatchItem, kBatchTime, kBatchAsOf, kBatchKnownBy, kBatchNamespace, kBatchScene, kBatchRequestId};

namespace {

constexpr size_t kBadTextBytesMax = 1000;

bool IsNumberFeature(std::string_view field) {
  return field.starts_with(kBatchRequestNumbers) || field.starts_with(kBatchCandidateNumbers);
}

bool IsWholeNumber(std::string_view text) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
}

bool Fail(std::string_view column, std::string reason, BadScoreRow* problem) {
  problem->column = column;
  problem->reason = std::move(reason);
  return false;
}

// The status without the name of its field, which has a column of its own.
bool Fail(std::string_view column, const absl::Status& status, BadScoreRow* problem) {
  std::string_view message(status.message().data(), status.message().size());
  if (message.starts_with(column) && message.substr(column.size()).starts_with(": ")) {
    message.remove_prefix(column.size() + 2);
  }
  return Fail(column, std::string(message), problem);
}

bool Text(std::string_view column, const ScoreCell& cell, std::string_view* out, BadScoreRow* problem) {
  if (cell.kind == ScoreCell::kNumber || cell.kind == ScoreCell::kOther) {
    return Fail(column, "text needed", problem);
  }
  *out = cell.text;
  return true;
}

bool User(const ScoreCell& cell, std::string_view* out, BadScoreRow* problem) {
  if (cell.kind == ScoreCell::kOther || (cell.kind == ScoreCell::kNumber && !IsWholeNumber(cell.text))) {
    return Fail(kBatchUser, "text or a whole number from 0 needed", problem);
  }
  *out = cell.text;
  return true;
}

bool Id(std::string_view column, const ScoreCell& cell, std::optional<uint64_t>* out, BadScoreRow* problem) {
  if (cell.kind == ScoreCell::kMissing || cell.text.empty()) return true;
  uint64_t number = 0;
  if (cell.kind == ScoreCell::kOther || (cell.kind == ScoreCell::kNumber && !ParseNumber(cell.text, &number))) {
    return Fail(column, "'" + std::string(cell.text.substr(0, 64)) + "', text or a whole number up to 2^64-1 needed",
                problem);
  }
  *out = IdFromText(cell.text);
  return true;
}

bool Time(std::string_view column, const ScoreCell& cell, int64_t unit_us, std::optional<int64_t>* out,
          BadScoreRow* problem) {
  if (cell.kind == ScoreCell::kMissing || cell.text.empty()) return true;
  if (cell.kind == ScoreCell::kOther) return Fail(column, "a number needed", problem);
  int64_t time_us = 0;
  if (auto status = TimeField(column, cell.text, unit_us, &time_us); !status.ok()) return Fail(column, status, problem);
  *out = time_us;
  return true;
}

// A value of a number feature, or none.
struct Measured {
  double value = 0;
  bool there = false;
};

bool Number(std::string_view column, const ScoreCell& cell, Measured* out, BadScoreRow* problem) {
  if (cell.kind == ScoreCell::kMissing || (cell.kind == ScoreCell::kLoose && cell.text.empty())) return true;
  double number = 0;
  if (cell.kind == ScoreCell::kText || cell.kind == ScoreCell::kOther || !ParseNumber(cell.text, &number)) {
    return Fail(column, "'" + std::string(cell.text.substr(0, 64)) + "', a number needed", problem);
  }
  *out = {number, true};
  return true;
}

}  // namespace

struct ScoreChunk::Parsed {
  std::string_view user, ns, scene;
  std::optional<uint64_t> item, request_id;
  std::optional<int64_t> time_us, as_of_us, known_by_us;
  std::vector<Measured> numbers;        // [features]
  std::vector<std::string_view> texts;  // [features]
};

bool ScoreChunk::Parse(const ScoreCells& cells, const std::vector<std::string>& features, int64_t time_unit_us,
                       Parsed* parsed, BadScoreRow* problem) {
  const auto& at = cells.fields;
  bool fine = User(at[kScoreUser], &parsed->user, problem) && Id(kBatchItem, at[kScoreItem], &parsed->item, problem) &&
              Time(kBatchTime, at[kScoreTime], time_unit_us, &parsed->time_us, problem) &&
              Time(kBatchAsOf, at[kScoreAsOf], time_unit_us, &parsed->as_of_us, problem) &&
              Time(kBatchKnownBy, at[kScoreKnownBy], time_unit_us, &parsed->known_by_us, problem) &&
              Text(kBatchNamespace, at[kScoreNamespace], &parsed->ns, problem) &&
              Text(kBatchScene, at[kScoreScene], &parsed->scene, problem) &&
              Id(kBatchRequestId, at[kScoreRequestId], &parsed->request_id, problem);
  parsed->numbers.resize(cells.features.size());
  parsed->texts.resize(cells.features.size());
  for (size_t f = 0; fine && f < cells.features.size(); ++f) {
    fine = IsNumberFeature(features[f]) ? Number(features[f], cells.features[f], &parsed->numbers[f], problem)
                                        : Text(features[f], cells.features[f], &parsed->texts[f], problem);
  }
  return fine;
}

template <typename T>
void ScoreChunk::Column<T>::Add(T value, bool there) {
  const size_t row = values.size();
  values.push_back(value);
  if (row % 8 == 0) bits.push_back(0);
  if (there) bits.back() |= static_cast<uint8_t>(1u << row % 8);
}

template <typename T>
void ScoreChunk::Column<T>::Pad(size_t rows) {
  while (values.size() < rows) Add(T{}, false);
}

void ScoreChunk::AddFeatures(const Parsed& parsed, const std::vector<std::string>& features) {
  const size_t before = rows_.size();
  for (size_t f = features_.size(); f < parsed.numbers.size(); ++f) features_.push_back({features[f], {}, {}});
  for (size_t f = 0; f < features_.size(); ++f) {
    Feature& feature = features_[f];
    if (IsNumberFeature(feature.field)) {
      const Measured number = f < parsed.numbers.size() ? parsed.numbers[f] : Measured();
      feature.numbers.Pad(before);
      feature.numbers.Add(number.value, number.there);
    } else {
      feature.texts.resize(before);
      feature.texts.push_back(f < parsed.texts.size() ? parsed.texts[f] : std::string_view());
    }
  }
}

void ScoreChunk::Add(const ScoreCells& cells, uint64_t line, std::string_view text,
                     const std::vector<std::string>& features, int64_t time_unit_us) {
  Parsed parsed;
  BadScoreRow problem;
  if (!Parse(cells, features, time_unit_us, &parsed, &problem)) {
    return AddBad(line, text, std::move(problem.column), std::move(problem.reason));
  }
  AddFeatures(parsed, features);
  users_.push_back(parsed.user);
  namespaces_.push_back(parsed.ns);
  scenes_.push_back(parsed.scene);
  items_.Add(parsed.item.value_or(0), parsed.item.has_value());
  request_ids_.Add(parsed.request_id.value_or(0), parsed.request_id.has_value());
  times_.Add(parsed.time_us.value_or(0), parsed.time_us.has_value());
  as_of_.Add(parsed.as_of_us.value_or(0), parsed.as_of_us.has_value());
  known_by_.Add(parsed.known_by_us.value_or(0), parsed.known_by_us.has_value());
  rows_.push_back({first_row_ + records_, line, text, cells.fields[kScoreUser], cells.fields[kScoreItem]});
  keep_columns_ = cells.keep.size();
  keep_.insert(keep_.end(), cells.keep.begin(), cells.keep.end());
  ++records_;
}

void ScoreChunk::AddBad(uint64_t line, std::string_view text, std::string column, std::string reason) {
  bad_.push_back({first_row_ + records_, line, std::move(column), std::move(reason),
                  std::string(text.substr(0, kBadTextBytesMax))});
  ++records_;
}

const BatchRows& ScoreChunk::Columns() {
  columns_ = {};
  columns_.rows = rows_.size();
  columns_.users = users_, columns_.namespaces = namespaces_, columns_.scenes = scenes_;
  columns_.items = items_.view(), columns_.request_ids = request_ids_.view();
  columns_.times_us = times_.view(), columns_.as_of_us = as_of_.view(), columns_.known_by_us = known_by_.view();
  for (Feature& feature : features_) {
    const std::string_view field = feature.field;
    const std::string name(field.substr(field.find('.') + 1));
    const ValidBits valid{feature.numbers.bits.data()};
    const std::span<const double> numbers(feature.numbers.values);
    if (field.starts_with(kBatchRequestNumbers)) columns_.request_numbers.push_back({name, numbers, valid});
    if (field.starts_with(kBatchCandidateNumbers)) columns_.candidate_numbers.push_back({name, numbers, valid});
    if (field.starts_with(kBatchRequestTexts)) columns_.request_texts.push_back({name, feature.texts});
    if (field.starts_with(kBatchCandidateTexts)) columns_.candidate_texts.push_back({name, feature.texts});
  }
  return columns_;
}

std::vector<BadScoreRow> ScoreChunk::Bad(const std::vector<BadBatchRow>& refused) const {
  std::vector<BadScoreRow> bad = bad_;
  for (const BadBatchRow& row : refused) {
    const Row& at = rows_[row.row];
    bad.push_back({at.row, at.line, row.column, row.reason, std::string(at.text.substr(0, kBadTextBytesMax))});
  }
  std::sort(bad.begin(), bad.end(), [](const BadScoreRow& a, const BadScoreRow& b) { return a.row < b.row; });
  return bad;
}

}  // namespace backstory
