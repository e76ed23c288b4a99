#include "serving/cli/score_output.h"

#include <charconv>
#include <utility>

#include "absl/strings/str_cat.h"
#include "features/io/csv.h"
#include "nlohmann/json.hpp"

namespace backstory {
namespace {

constexpr const char* kBadColumns[] = {"row", "line", "column", "reason", "text"};

void AppendJsonText(std::string_view text, std::string* out) {
  out->append(nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

void AppendText(bool csv, std::string_view text, std::string* out) {
  csv ? AppendCsvField(text, out) : AppendJsonText(text, out);
}

void AppendCell(bool csv, const ScoreCell& cell, std::string* out) {
  if (cell.kind == ScoreCell::kMissing) {
    if (!csv) out->append("null");
  } else if (!csv && (cell.kind == ScoreCell::kNumber || cell.kind == ScoreCell::kOther)) {
    out->append(cell.text);
  } else {
    AppendText(csv, cell.text, out);
  }
}

// As many digits as it takes to read the same bits back.
void AppendFloat(float value, std::string* out) {
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value).ptr;
  out->append(buffer, end);
}

void AppendBool(bool csv, bool value, std::string* out) {
  out->append(csv ? (value ? "1" : "0") : (value ? "true" : "false"));
}

}  // namespace

ScoreFormat::ScoreFormat(bool csv, std::vector<std::string> tasks, std::vector<std::string> keep) : csv_(csv) {
  columns_ = {"row", std::string(kBatchUser), std::string(kBatchItem), std::string(kBatchTime)};
  for (const std::string& task : tasks) {
    columns_.push_back("calibrated." + task);
    columns_.push_back("raw_logit." + task);
  }
  for (const char* name : {"rows_visible", "unknown_user", "unknown_item"}) columns_.push_back(name);
  columns_.insert(columns_.end(), keep.begin(), keep.end());
  for (size_t c = 0; c < columns_.size(); ++c) {
    std::string before = csv ? (c == 0 ? "" : ",") : (c == 0 ? "{" : ",");
    if (csv) {
      header_.append(before);
      AppendCsvField(columns_[c], &header_);
    } else {
      AppendJsonText(columns_[c], &before);
      before.push_back(':');
    }
    before_.push_back(std::move(before));
  }
  if (!csv) return;
  header_.push_back('\n');
  for (const char* name : kBadColumns) absl::StrAppend(&bad_header_, bad_header_.empty() ? "" : ",", name);
  bad_header_.push_back('\n');
}

void ScoreFormat::AppendRow(const ScoreChunk& chunk, const BatchScores& scores, size_t i, std::string* out) const {
  size_t column = 0;
  const auto next = [&] { out->append(before_[column++]); };
  next(), absl::StrAppend(out, chunk.RowOf(i));
  next(), AppendCell(csv_, chunk.user(i), out);
  next(), AppendCell(csv_, chunk.item(i), out);
  next(), absl::StrAppend(out, chunk.time_us(i));
  for (const ScoreColumn& task : scores.scores) {
    next(), AppendFloat(task.calibrated[i], out);
    next(), AppendFloat(task.raw_logit[i], out);
  }
  next(), absl::StrAppend(out, scores.rows_visible[i]);
  next(), AppendBool(csv_, (scores.flags[i] & kUnknownUser) != 0, out);
  next(), AppendBool(csv_, (scores.flags[i] & kUnknownItem) != 0, out);
  for (const ScoreCell& cell : chunk.keep(i)) next(), AppendCell(csv_, cell, out);
  out->append(csv_ ? "\n" : "}\n");
}

std::string ScoreFormat::Rows(const ScoreChunk& chunk, const BatchScores& scores) const {
  std::string out = header_;
  for (size_t i = 0; i < scores.flags.size(); ++i) {
    if ((scores.flags[i] & kRowBad) == 0) AppendRow(chunk, scores, i, &out);
  }
  return out;
}

std::string ScoreFormat::BadRows(const std::vector<BadScoreRow>& rows) const {
  std::string out = bad_header_;
  for (const BadScoreRow& row : rows) {
    absl::StrAppend(&out, csv_ ? "" : "{\"row\":", row.row, csv_ ? "," : ",\"line\":", row.line);
    const std::string* texts[] = {&row.column, &row.reason, &row.text};
    for (size_t t = 0; t < 3; ++t) {
      csv_ ? out.push_back(',') : absl::StrAppend(&out, ",\"", kBadColumns[2 + t], "\":");
      AppendText(csv_, *texts[t], &out);
    }
    out.append(csv_ ? "\n" : "}\n");
  }
  return out;
}

}  // namespace backstory
