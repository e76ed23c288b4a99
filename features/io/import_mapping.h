// How the columns (CSV) or keys (JSON lines) of somebody's file become our fields. docs/reference/import-format.md is
// the manual; the field names here are the ones of the import format.
#ifndef BACKSTORY_FEATURES_IO_IMPORT_MAPPING_H_
#define BACKSTORY_FEATURES_IO_IMPORT_MAPPING_H_

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace backstory {

struct ImportMapping {
  std::map<std::string, std::string> columns;    // field -> column; a field not named here uses the column of its name
  std::map<std::string, std::string> constants;  // field -> value of every row whose column is absent or empty
  int64_t time_unit_us = 1;                      // what 1 in a time column means
  bool title_year = false;                       // items: an absent year is the "(1995)" that ends the title
  bool mapped() const { return !columns.empty(); }
};

// Both mappings of an import.
struct ImportMappings {
  ImportMapping events, items;
};

// "movielens": ratings.csv and movies.csv of GroupLens. "" and "backstory": the import format itself.
absl::StatusOr<ImportMappings> PresetMappings(std::string_view name);

// What may stand before the '=' of a pair.
struct FieldNames {
  std::string_view (*field_of)(std::string_view name);  // short names -> fields, others as they are
  bool (*known)(std::string_view field);
  const char* of_what;  // for messages: "the import format"
};
// "a=b,c=d" into `out`. INVALID_ARGUMENT naming an unknown field or a malformed pair.
absl::Status AddFieldPairs(std::string_view pairs, FieldNames names, std::map<std::string, std::string>* out);

// "time=timestamp,item=movieId" into `columns`, "action=rating" into `constants`. Short names: user_id, item, time,
// label_time. Errors as above.
absl::Status AddEventColumns(std::string_view pairs, ImportMapping* mapping);
absl::Status AddItemColumns(std::string_view pairs, ImportMapping* mapping);
absl::Status AddEventConstants(std::string_view pairs, ImportMapping* mapping);

// "s", "ms" or "us".
absl::StatusOr<int64_t> TimeUnitUs(std::string_view unit);

// The field that a column or short name stands for: "time" -> "time_us"; others as they are.
std::string_view FieldOfName(std::string_view name);
bool IsEventField(std::string_view field);
bool IsItemField(std::string_view field);

}  // namespace backstory

#endif  // BACKSTORY_FEATURES_IO_IMPORT_MAPPING_H_
