#include "features/io/import_file.h"

#include <algorithm>
#include <optional>
#include <span>

#include "absl/strings/str_cat.h"
#include "features/io/csv.h"
#include "features/io/import_rows.h"
#include "features/io/text_file.h"

namespace backstory {
namespace {

constexpr size_t kPieceBytes = 1 << 20;
constexpr size_t kBadTextBytesMax = 1000;

template <typename Row>
void AddBad(uint64_t line, const std::string& reason, std::string_view text, ImportPiece<Row>* out) {
  out->bad.push_back({line, reason, std::string(text.substr(0, kBadTextBytesMax))});
}

void SetLine(uint64_t line, std::span<ImportedEvent> rows) {
  for (ImportedEvent& row : rows) row.line = line;
}
void SetLine(uint64_t, std::span<Item>) {}

template <typename Row, typename Read>
ImportPiece<Row> ReadCsv(const TextPiece& piece, const Read& read) {
  ImportPiece<Row> out;
  CsvReader csv(piece);
  while (csv.Next()) {
    ++out.records;
    if (!csv.error().empty()) {
      AddBad(csv.line(), csv.error(), csv.record(), &out);
      continue;
    }
    const size_t before = out.rows.size();
    if (auto status = read(csv.fields(), &out.rows); !status.ok()) {
      AddBad(csv.line(), std::string(status.message()), csv.record(), &out);
    }
    SetLine(csv.line(), std::span(out.rows).subspan(before));
  }
  return out;
}

template <typename Row, typename Read>
ImportPiece<Row> ReadLines(const TextPiece& piece, const Read& read) {
  ImportPiece<Row> out;
  uint64_t line = piece.first_line;
  for (std::string_view left = piece.text; !left.empty(); ++line) {
    const size_t end = std::min(left.find('\n'), left.size());
    std::string_view text = left.substr(0, end);
    left.remove_prefix(std::min(end + 1, left.size()));
    if (text.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    ++out.records;
    const size_t before = out.rows.size();
    if (auto status = read(text, &out.rows); !status.ok()) AddBad(line, std::string(status.message()), text, &out);
    SetLine(line, std::span(out.rows).subspan(before));
  }
  return out;
}

template <typename Row>
absl::StatusOr<std::vector<Row>> ReadAll(const std::string& path, const ImportMapping& mapping,
                                         ImportFile::Content content,
                                         ImportPiece<Row> (ImportFile::*read)(size_t) const, std::vector<BadRow>* bad) {
  absl::StatusOr<ImportFile> file = ImportFile::Open(path, content, mapping);
  if (!file.ok()) return file.status();
  std::vector<Row> rows;
  for (size_t i = 0; i < file->pieces(); ++i) {
    ImportPiece<Row> piece = ((*file).*read)(i);
    std::move(piece.rows.begin(), piece.rows.end(), std::back_inserter(rows));
    std::move(piece.bad.begin(), piece.bad.end(), std::back_inserter(*bad));
  }
  return rows;
}

}  // namespace

struct ImportFile::Parts {
  std::string path;
  TextFile text;
  bool csv = false;
  std::vector<TextPiece> pieces;
  std::vector<std::string> unused;
  std::optional<RowReader> reader;
};

ImportFile::ImportFile(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
ImportFile::~ImportFile() = default;
ImportFile::ImportFile(ImportFile&&) noexcept = default;
ImportFile& ImportFile::operator=(ImportFile&&) noexcept = default;

const std::string& ImportFile::path() const { return parts_->path; }
size_t ImportFile::pieces() const { return parts_->pieces.size(); }
size_t ImportFile::piece_bytes(size_t piece) const { return parts_->pieces[piece].text.size(); }
const std::vector<std::string>& ImportFile::unused_columns() const { return parts_->unused; }

absl::StatusOr<ImportFile> ImportFile::Open(const std::string& path, Content content, const ImportMapping& mapping) {
  auto parts = std::make_unique<Parts>();
  parts->path = path;
  parts->csv = path.ends_with(".csv");
  if (!parts->csv && !path.ends_with(".jsonl") && !path.ends_with(".ndjson") && !path.ends_with(".json")) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": a name ending in .csv, .jsonl, .ndjson or .json needed"));
  }
  absl::StatusOr<TextFile> text = TextFile::Open(path);
  if (!text.ok()) return text.status();
  parts->text = *std::move(text);
  TextPiece body = SkipCsvComments(parts->text.text());
  if (!parts->csv) {
    parts->reader = RowReader::ForJson(mapping);
    parts->pieces = SplitLines(body.text, body.first_line, kPieceBytes, false);
    return ImportFile(std::move(parts));
  }
  CsvReader header(body);
  if (!header.Next()) return absl::InvalidArgumentError(absl::StrCat(path, ": no header row"));
  absl::StatusOr<RowReader> reader = header.error().empty()
                                         ? RowReader::ForCsv(header.fields(), content, mapping, &parts->unused)
                                         : absl::InvalidArgumentError(header.error());
  if (!reader.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ":", header.line(), ": ", reader.status().message()));
  }
  parts->reader = *std::move(reader);
  parts->pieces = SplitLines(header.rest(), header.next_line(), kPieceBytes, true);
  return ImportFile(std::move(parts));
}

ImportPiece<ImportedEvent> ImportFile::ReadEvents(size_t piece) const {
  const RowReader& reader = *parts_->reader;
  if (parts_->csv) {
    return ReadCsv<ImportedEvent>(parts_->pieces[piece],
                                  [&](const auto& fields, auto* rows) { return reader.ReadCsvEvent(fields, rows); });
  }
  return ReadLines<ImportedEvent>(parts_->pieces[piece],
                                  [&](std::string_view line, auto* rows) { return reader.ReadJsonEvent(line, rows); });
}

ImportPiece<Item> ImportFile::ReadItems(size_t piece) const {
  const RowReader& reader = *parts_->reader;
  if (parts_->csv) {
    return ReadCsv<Item>(parts_->pieces[piece],
                         [&](const auto& fields, auto* rows) { return reader.ReadCsvItem(fields, rows); });
  }
  return ReadLines<Item>(parts_->pieces[piece],
                         [&](std::string_view line, auto* rows) { return reader.ReadJsonItem(line, rows); });
}

absl::StatusOr<std::vector<ImportedEvent>> ReadEventFile(const std::string& path, const ImportMapping& mapping,
                                                         std::vector<BadRow>* bad) {
  return ReadAll<ImportedEvent>(path, mapping, ImportFile::Content::kEvents, &ImportFile::ReadEvents, bad);
}

absl::StatusOr<std::vector<Item>> ReadItemFile(const std::string& path, const ImportMapping& mapping,
                                               std::vector<BadRow>* bad) {
  return ReadAll<Item>(path, mapping, ImportFile::Content::kItems, &ImportFile::ReadItems, bad);
}

}  // namespace backstory
