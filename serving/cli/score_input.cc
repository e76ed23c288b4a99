#include "serving/cli/score_input.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "features/hash.h"
#include "features/io/event_json.h"
#include "features/io/import_mapping.h"
#include "nlohmann/json.hpp"

namespace backstory {
namespace {

using nlohmann::json;

constexpr std::string_view kPrefixes[] = {kBatchRequestNumbers, kBatchRequestTexts, kBatchCandidateNumbers,
                                          kBatchCandidateTexts};
constexpr size_t kUnusedMax = 100;  // keys of JSON lines worth naming

bool IsFeature(std::string_view field) {
  return std::any_of(std::begin(kPrefixes), std::end(kPrefixes), [field](std::string_view prefix) {
    return field.starts_with(prefix) && field.size() > prefix.size();
  });
}

bool IsScoreField(std::string_view field) {
  return IsFeature(field) ||
         std::find(kScoreFieldNames.begin(), kScoreFieldNames.end(), field) != kScoreFieldNames.end();
}

std::string_view ScoreFieldOf(std::string_view name) {
  if (name == "as_of") return kBatchAsOf;
  if (name == "known_by") return kBatchKnownBy;
  if (name == "label_time") return name;  // of the import format, not ours
  return FieldOfName(name);
}

size_t IndexOf(std::string_view field) {
  return static_cast<size_t>(std::find(kScoreFieldNames.begin(), kScoreFieldNames.end(), field) -
                             kScoreFieldNames.begin());
}

constexpr FieldNames kNames{ScoreFieldOf, IsScoreField, "batch scoring"};

}  // namespace

absl::Status AddScoreColumns(std::string_view pairs, ScoreMapping* mapping) {
  return AddFieldPairs(pairs, kNames, &mapping->columns);
}

absl::Status AddScoreConstants(std::string_view pairs, ScoreMapping* mapping) {
  return AddFieldPairs(pairs, kNames, &mapping->constants);
}

absl::StatusOr<ScoreInput> ScoreInput::Open(const std::string& path, const ScoreMapping& mapping) {
  ScoreInput input(mapping);
  input.csv_ = path.ends_with(".csv");
  if (!input.csv_ && !path.ends_with(".jsonl") && !path.ends_with(".ndjson") && !path.ends_with(".json")) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": a name ending in .csv, .jsonl, .ndjson or .json needed"));
  }
  absl::StatusOr<TextFile> text = TextFile::Open(path);
  if (!text.ok()) return text.status();
  input.text_ = *std::move(text);
  input.left_ = SkipCsvComments(input.text_.text());
  for (const auto& [field, value] : mapping.constants) {
    if (IsFeature(field)) input.FeatureOf(field);
  }
  if (!input.csv_) return input;
  input.reader_ = std::make_unique<CsvReader>(input.left_);
  if (!input.reader_->Next()) return absl::InvalidArgumentError(absl::StrCat(path, ": no header row"));
  const absl::Status status = input.reader_->error().empty() ? input.UseHeader(input.reader_->fields())
                                                             : absl::InvalidArgumentError(input.reader_->error());
  if (!status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ":", input.reader_->line(), ": ", status.message()));
  }
  input.left_ = {input.reader_->rest(), input.reader_->next_line()};
  return input;
}

std::string ScoreInput::Fingerprint() const { return absl::StrFormat("%016x", HashBytes(text_.text(), 0)); }

size_t ScoreInput::FeatureOf(std::string_view field) {
  const auto found = std::find(features_.begin(), features_.end(), field);
  if (found == features_.end()) features_.emplace_back(field);
  return static_cast<size_t>(std::find(features_.begin(), features_.end(), field) - features_.begin());
}

// Empty if a feature can be added: what the scorer would refuse a whole call for concerns one row of JSON here.
std::string ScoreInput::WhyNoFeature(const std::string& field) const {
  const std::string side = field.substr(0, field.find('_') + 1);  // "request_" or "candidate_"
  const std::string name = field.substr(field.find('.') + 1);
  if (name.size() > kFeatureNameBytesMax) {
    return absl::StrCat("a name of ", name.size(), " bytes, the limit is ", kFeatureNameBytesMax);
  }
  size_t others = 0;
  for (const std::string& other : features_) {
    if (other == field) return "";
    if (!other.starts_with(side)) continue;
    if (other.substr(other.find('.') + 1) == name) return absl::StrCat("there is ", other, " already");
    ++others;
  }
  const size_t limit = side == "request_" ? kRequestFeaturesMax : kCandidateColumnsMax;
  return others < limit ? "" : absl::StrCat("more than ", limit, " features");
}

// What a column or key means, decided when its name is first seen.
const std::vector<ScoreInput::Target>& ScoreInput::TargetsOf(std::string_view column) {
  const auto [it, fresh] = targets_.try_emplace(std::string(column));
  if (!fresh) return it->second;
  std::vector<std::string> fields;
  for (const auto& [field, mapped] : mapping_.columns) {
    if (mapped == column) fields.push_back(field);
  }
  const std::string own(ScoreFieldOf(column));
  if (fields.empty() && IsScoreField(own) && !mapping_.columns.contains(own)) fields.push_back(own);
  for (const std::string& field : fields) {
    if (std::string why = IsFeature(field) ? WhyNoFeature(field) : ""; !why.empty()) {
      it->second.push_back({Target::kRefused, refusals_.size()});
      refusals_.push_back(absl::StrCat(field.substr(0, 100), ": ", why));
      continue;
    }
    it->second.push_back(IsFeature(field) ? Target{Target::kFeature, FeatureOf(field)}
                                          : Target{Target::kField, IndexOf(field)});
  }
  for (size_t k = 0; k < mapping_.keep.size(); ++k) {
    if (mapping_.keep[k] == column) it->second.push_back({Target::kKeep, k});
  }
  if (!it->second.empty()) return it->second;
  if (unused_.size() < kUnusedMax) {
    unused_.emplace_back(column);
    return it->second;
  }
  targets_.erase(it);  // a file may have any number of them
  static const std::vector<Target> nowhere;
  return nowhere;
}

absl::Status ScoreInput::UseHeader(const std::vector<std::string_view>& header) {
  std::map<std::pair<int, size_t>, size_t> uses;
  for (const std::string_view column : header) {
    columns_.push_back(TargetsOf(column));
    for (const Target& target : columns_.back()) {
      if (target.kind == Target::kRefused) {
        return absl::InvalidArgumentError(absl::StrCat("header: ", refusals_[target.index]));
      }
      if (++uses[{target.kind, target.index}] > 1) {
        return absl::InvalidArgumentError(
            absl::StrCat("header: two columns for one field, one is '", std::string(column), "'"));
      }
    }
  }
  const auto in_header = [&header](std::string_view name) {
    return std::find(header.begin(), header.end(), name) != header.end();
  };
  for (const auto& [field, column] : mapping_.columns) {
    if (!in_header(column)) return absl::InvalidArgumentError(absl::StrCat("header: no column '", column, "'"));
  }
  for (const std::string& column : mapping_.keep) {
    if (!in_header(column)) return absl::InvalidArgumentError(absl::StrCat("header: no column '", column, "' to keep"));
  }
  for (const ScoreField needed : {kScoreUser, kScoreItem, kScoreTime}) {
    const std::string field(kScoreFieldNames[needed]);
    if (!uses.contains({Target::kField, needed}) && !mapping_.constants.contains(field)) {
      return absl::InvalidArgumentError(absl::StrCat("header: no column for the field ", field, " (map it)"));
    }
  }
  return absl::OkStatus();
}

bool ScoreInput::AtEnd() {
  const std::string_view text = left_.text;
  return text.find_first_not_of(csv_ ? "\r\n" : " \t\r\n") == std::string_view::npos;
}

// The next line of a JSON-lines file that is not blank.
bool ScoreInput::NextLine(std::string_view* line, uint64_t* number) {
  while (!left_.text.empty()) {
    const size_t end = std::min(left_.text.find('\n'), left_.text.size());
    *line = left_.text.substr(0, end);
    *number = left_.first_line++;
    left_.text.remove_prefix(std::min(end + 1, left_.text.size()));
    if (line->find_first_not_of(" \t\r") != std::string_view::npos) return true;
  }
  return false;
}

size_t ScoreInput::Skip(size_t rows) {
  size_t skipped = 0;
  std::string_view line;
  uint64_t number = 0;
  while (skipped < rows && (csv_ ? reader_->Next() : NextLine(&line, &number))) ++skipped;
  if (csv_) left_ = {reader_->rest(), reader_->next_line()};
  rows_read_ += skipped;
  return skipped;
}

// Empty, or why the cell cannot go there.
std::string ScoreInput::Place(const std::vector<Target>& targets, const ScoreCell& cell, ScoreCells* cells) const {
  for (const Target& target : targets) {
    if (target.kind == Target::kRefused) return refusals_[target.index];
    if (target.kind == Target::kFeature && cells->features.size() <= target.index) {
      cells->features.resize(features_.size());
    }
    ScoreCell& place = target.kind == Target::kField     ? cells->fields[target.index]
                       : target.kind == Target::kFeature ? cells->features[target.index]
                                                         : cells->keep[target.index];
    if (place.kind != ScoreCell::kMissing) {
      const std::string field = target.kind == Target::kField     ? std::string(kScoreFieldNames[target.index])
                                : target.kind == Target::kFeature ? features_[target.index]
                                                                  : mapping_.keep[target.index];
      return absl::StrCat("two keys for the field ", field);
    }
    place = cell;
  }
  return "";
}

bool ScoreInput::NextCsv(ScoreCells* cells, uint64_t* line, std::string_view* text, std::string* problem,
                         ScoreChunk* chunk) {
  if (!reader_->Next()) return false;
  *line = reader_->line();
  *text = reader_->record();
  const std::vector<std::string_view>& fields = reader_->fields();
  *problem = reader_->error();
  if (problem->empty() && fields.size() != columns_.size()) {
    *problem = absl::StrCat(fields.size(), " fields, the header has ", columns_.size());
  }
  const std::string_view file = text_.text();
  for (size_t c = 0; problem->empty() && c < columns_.size(); ++c) {
    if (fields[c].empty() || columns_[c].empty()) continue;
    // A field with doubled quotes was unescaped into the reader's own memory.
    const bool in_file = fields[c].data() >= file.data() && fields[c].data() < file.data() + file.size();
    Place(columns_[c], {ScoreCell::kLoose, in_file ? fields[c] : chunk->Keep(std::string(fields[c]))}, cells);
  }
  return true;
}

bool ScoreInput::NextJson(ScoreCells* cells, uint64_t* line, std::string_view* text, std::string* problem,
                          ScoreChunk* chunk) {
  if (!NextLine(text, line)) return false;
  const absl::StatusOr<json> object = ParseJsonObject(*text);
  if (!object.ok() || !object->is_object()) {
    *problem = object.ok() ? "not a JSON object" : std::string(object.status().message());
    return true;
  }
  const auto place = [&](const std::string& key, const json& value) {
    const std::vector<Target>& targets = TargetsOf(key);
    if (targets.empty() || value.is_null() || !problem->empty()) return;
    ScoreCell cell{ScoreCell::kOther, {}};
    if (value.is_string()) cell.kind = ScoreCell::kText;
    if (value.is_number()) cell.kind = ScoreCell::kNumber;
    cell.text = chunk->Keep(value.is_string() ? value.get<std::string>() : value.dump());
    *problem = Place(targets, cell, cells);
  };
  for (const auto& [key, value] : object->items()) {
    const bool nested = value.is_object() && IsFeature(key + ".x");
    if (!nested) place(key, value);
    if (!nested) continue;
    for (const auto& [name, inner] : value.items()) place(absl::StrCat(key, ".", name), inner);
  }
  return true;
}

std::unique_ptr<ScoreChunk> ScoreInput::Read(size_t rows) {
  auto chunk = std::make_unique<ScoreChunk>(rows_read_);
  ScoreCells cells;
  while (chunk->rows() < rows) {
    uint64_t line = 0;
    std::string_view text;
    std::string problem;
    cells.fields.fill({});
    cells.features.assign(features_.size(), {});
    cells.keep.assign(mapping_.keep.size(), {});
    if (!(csv_ ? NextCsv(&cells, &line, &text, &problem, chunk.get())
               : NextJson(&cells, &line, &text, &problem, chunk.get()))) {
      break;
    }
    for (const auto& [field, value] : mapping_.constants) {
      ScoreCell& cell = IsFeature(field) ? cells.features[FeatureOf(field)] : cells.fields[IndexOf(field)];
      if (cell.kind == ScoreCell::kMissing) cell = {ScoreCell::kLoose, value};
    }
    if (problem.empty()) {
      chunk->Add(cells, line, text, features_, mapping_.time_unit_us);
    } else {
      chunk->AddBad(line, text, "", std::move(problem));
    }
  }
  if (csv_) left_ = {reader_->rest(), reader_->next_line()};
  rows_read_ += chunk->rows();
  return chunk;
}

}  // namespace backstory
