#include "models/glass/golden.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "features/io/event_json.h"
#include "models/glass/beam_search.h"
#include "models/glass/history.h"
#include "models/golden_lines.h"
#include "nlohmann/json.hpp"

namespace backstory::glass {
namespace {

using golden::Bad;
using golden::ReadNumber;
using golden::ReadUnsigned;
using golden::Under;
using nlohmann::json;

template <typename T>
absl::Status ReadList(const json& value, const std::string& key, std::vector<T>* out,
                      const std::function<absl::Status(const json&, const std::string&, T*)>& read) {
  if (!value.is_array() || value.size() > kGoldenEventsMax) {
    return Bad(key, absl::StrCat("not an array of at most ", kGoldenEventsMax));
  }
  for (size_t i = 0; i < value.size(); ++i) {
    if (absl::Status s = read(value[i], absl::StrCat(key, "[", i, "]"), &out->emplace_back()); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status ReadId(const json& value, const std::string& key, uint64_t* out) {
  return ReadUnsigned(value, key, UINT64_MAX, out);
}

absl::Status ReadSid(const json& value, const std::string& key, Sid* out) {
  if (!value.is_array() || value.size() != kLevels) return Bad(key, absl::StrCat("not ", kLevels, " codes"));
  for (size_t l = 0; l < kLevels; ++l) {
    uint64_t code = 0;
    if (absl::Status s = ReadUnsigned(value[l], absl::StrCat(key, "[", l, "]"), UINT16_MAX, &code); !s.ok()) return s;
    (*out)[l] = static_cast<uint16_t>(code);
  }
  return absl::OkStatus();
}

absl::Status ReadEvent(const json& value, const std::string& key, Event* out) {
  auto event = EventFromJson(value);
  if (!event.ok()) return Under(key, event.status());
  if (event->tombstone) return Bad(key, "a tombstone: golden cases list live events");
  *out = *std::move(event);
  return absl::OkStatus();
}

// Every key of `readers` must be there, and no other.
using Readers = std::map<std::string, std::function<absl::Status(const json&, const std::string&)>>;
absl::Status ReadObject(const json& value, const std::string& prefix, const Readers& readers) {
  if (!value.is_object()) return Bad(prefix.empty() ? "case" : prefix, "not an object");
  for (const auto& [name, member] : value.items()) {
    if (!readers.contains(name)) return Bad(prefix + name, "unknown key");
  }
  for (const auto& [name, read] : readers) {
    if (!value.contains(name)) return Bad(prefix + name, "missing");
    if (absl::Status s = read(value.at(name), prefix + name); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status ReadExpectation(const json& value, const std::string& key, GoldenExpectation* out) {
  uint64_t long_items = 0;
  const Readers readers = {
      {"short_items", [&](auto& v, auto& k) { return ReadList<uint64_t>(v, k, &out->short_items, ReadId); }},
      {"long_items", [&](auto& v, auto& k) { return ReadUnsigned(v, k, kGoldenEventsMax, &long_items); }},
      {"sids", [&](auto& v, auto& k) { return ReadList<Sid>(v, k, &out->sids, ReadSid); }},
      {"log_probability", [&](auto& v, auto& k) { return ReadList<double>(v, k, &out->log_probability, ReadNumber); }},
      {"items", [&](auto& v, auto& k) { return ReadList<uint64_t>(v, k, &out->items, ReadId); }},
      {"item_sids", [&](auto& v, auto& k) { return ReadList<Sid>(v, k, &out->item_sids, ReadSid); }},
      {"min_gap", [&](auto& v, auto& k) { return ReadNumber(v, k, &out->min_gap); }}};
  if (absl::Status s = ReadObject(value, key + ".", readers); !s.ok()) return s;
  out->long_items = long_items;
  if (out->sids.size() != out->log_probability.size()) {
    return Bad(key + ".log_probability",
               absl::StrCat(out->log_probability.size(), " numbers for ", out->sids.size(), " sids"));
  }
  if (out->items.size() != out->item_sids.size()) {
    return Bad(key + ".item_sids", absl::StrCat(out->item_sids.size(), " for ", out->items.size(), " items"));
  }
  return absl::OkStatus();
}

absl::StatusOr<GoldenCase> CaseFromJson(std::string_view line) {
  auto object = ParseJsonObject(line);
  if (!object.ok()) return object.status();
  GoldenCase golden;
  uint64_t beam = 0, count = 0, as_of_us = 0;
  const absl::Status status =
      ReadObject(*object, "",
                 {{"name",
                   [&](auto& v, auto& k) {
                     if (!v.is_string()) return Bad(k, "not a text");
                     golden.name = v.template get<std::string>();
                     return absl::OkStatus();
                   }},
                  {"events", [&](auto& v, auto& k) { return ReadList<Event>(v, k, &golden.events, ReadEvent); }},
                  {"as_of_us", [&](auto& v, auto& k) { return ReadUnsigned(v, k, INT64_MAX, &as_of_us); }},
                  {"beam", [&](auto& v, auto& k) { return ReadUnsigned(v, k, 1024, &beam); }},
                  {"count", [&](auto& v, auto& k) { return ReadUnsigned(v, k, 10'000, &count); }},
                  {"exclude_seen",
                   [&](auto& v, auto& k) {
                     if (!v.is_boolean()) return Bad(k, "not true or false");
                     golden.exclude_seen = v.template get<bool>();
                     return absl::OkStatus();
                   }},
                  {"expect", [&](auto& v, auto& k) { return ReadExpectation(v, k, &golden.expect); }}});
  if (!status.ok()) return status;
  if (beam == 0) return Bad("beam", "must be 1..1024");
  golden.beam = beam, golden.count = count, golden.as_of_us = static_cast<int64_t>(as_of_us);
  return golden;
}

std::string SidText(const Sid& sid) { return absl::StrCat("(", sid[0], ", ", sid[1], ", ", sid[2], ")"); }
std::string Text(const Sid& sid) { return SidText(sid); }
std::string Text(uint64_t value) { return absl::StrCat(value); }

// Empty, or how two lists differ.
template <typename T>
std::string Difference(const std::string& what, const std::vector<T>& expected, const std::vector<T>& found) {
  for (size_t i = 0; i < std::min(expected.size(), found.size()); ++i) {
    if (expected[i] == found[i]) continue;
    return absl::StrCat(what, "[", i, "]: expected ", Text(expected[i]), ", found ", Text(found[i]));
  }
  if (expected.size() == found.size()) return "";
  return absl::StrCat(what, ": expected ", expected.size(), " of them, found ", found.size());
}

std::string BeyondTolerance(const std::string& what, double expected, double found, double tolerance) {
  return absl::StrCat(what, ": expected ", expected, ", found ", found, ", tolerance ", tolerance);
}

// A case as a searcher ran it.
struct Run {
  std::unique_ptr<History> history;
  std::vector<Beam> beams;
  GoldenExpectation found;
};

// What every searcher must give.
std::string CompareHistory(const GoldenExpectation& expect, const GoldenExpectation& found) {
  const std::string wrong = Difference("short_items", expect.short_items, found.short_items);
  if (!wrong.empty()) return wrong;
  if (expect.long_items != found.long_items) {
    return absl::StrCat("long_items: expected ", expect.long_items, ", found ", found.long_items);
  }
  if (expect.log_probability.size() == found.log_probability.size()) return "";
  return absl::StrCat("sids: expected ", expect.sids.size(), " of them, found ", found.sids.size());
}

// Of a search as exact as the expectation.
std::string Compare(const GoldenExpectation& expect, const GoldenExpectation& found, double* worst) {
  std::string wrong = CompareHistory(expect, found);
  const bool ordered = expect.min_gap >= kGoldenGapMin;
  if (wrong.empty() && ordered) wrong = Difference("sids", expect.sids, found.sids);
  for (size_t i = 0; wrong.empty() && i < expect.log_probability.size(); ++i) {
    const double difference = std::abs(expect.log_probability[i] - found.log_probability[i]);
    // Written so that a NaN is beyond every tolerance.
    if (!(difference <= kGoldenTolerance)) {
      wrong = BeyondTolerance(absl::StrCat("log_probability[", i, "]"), expect.log_probability[i],
                              found.log_probability[i], kGoldenTolerance);
    }
    *worst = std::max(*worst, difference);
  }
  if (wrong.empty() && ordered) wrong = Difference("items", expect.items, found.items);
  if (wrong.empty() && ordered) wrong = Difference("item_sids", expect.item_sids, found.item_sids);
  return wrong;
}

// Of a search that rounds.
std::string CompareRounded(const GoldenExpectation& expect, const Run& run, const Catalogue& catalogue,
                           const Network& exact, double* worst) {
  const GoldenExpectation& found = run.found;
  std::string wrong = CompareHistory(expect, found);
  if (!wrong.empty() || run.beams.empty()) return wrong;
  double scale = 1;
  for (const double expected : expect.log_probability) scale = std::max(scale, std::abs(expected));
  const double tolerance = kGoldenToleranceBf16 * scale;
  const std::vector<float> scores =
      ScoresOf(exact, Encode(exact, *run.history, nullptr), BucketsOf(catalogue, *run.history), run.beams);
  for (size_t i = 0; i < scores.size(); ++i) {
    const double difference = std::abs(static_cast<double>(scores[i]) - found.log_probability[i]);
    if (!(difference <= tolerance)) {
      return BeyondTolerance("log_probability of " + SidText(found.sids[i]), static_cast<double>(scores[i]),
                             found.log_probability[i], tolerance);
    }
    *worst = std::max(*worst, difference / scale);
  }
  if (found.log_probability[0] >= expect.log_probability[0] - tolerance) return "";
  return BeyondTolerance("log_probability[0]", expect.log_probability[0], found.log_probability[0], tolerance);
}

absl::StatusOr<Run> RunCase(const Searcher& searcher, const Catalogue& catalogue, const GoldenCase& golden) {
  const Config& config = catalogue.config();
  std::vector<Event> events = golden.events;
  std::sort(events.begin(), events.end(), CanonicalLess);
  Run run;
  run.history = std::make_unique<History>(&catalogue);
  std::set<uint64_t> seen;
  for (const Event& event : events) {
    if (event.time_us >= golden.as_of_us) break;
    seen.insert(event.item_id);
    const auto row = catalogue.RowOf(event.item_id);
    if (row.has_value() && IsBehaviour(config, event)) run.history->Append(*row, event.event_id, event.time_us);
  }
  for (const Behaviour& behaviour : run.history->short_window()) {
    run.found.short_items.push_back(catalogue.item_id(behaviour.row));
  }
  run.found.long_items = run.history->long_size();
  auto beams = EncodeAndSearch(searcher, catalogue, *run.history, golden.beam);
  if (!beams.ok()) return beams.status();
  run.beams = *std::move(beams);
  for (const Beam& beam : run.beams) {
    run.found.sids.push_back(catalogue.sid(catalogue.Items(beam.node)[0]));
    run.found.log_probability.push_back(static_cast<double>(beam.score));
  }
  RecommendOptions recommend;
  recommend.count = golden.count;
  if (golden.exclude_seen) {
    recommend.keep = [&](uint32_t row) { return !seen.contains(catalogue.item_id(row)); };
  }
  for (const RecommendedItem& item : ItemsOf(catalogue, run.beams, recommend)) {
    run.found.items.push_back(catalogue.item_id(item.row));
    run.found.item_sids.push_back(catalogue.sid(item.row));
  }
  return run;
}

}  // namespace

absl::StatusOr<std::vector<GoldenCase>> ParseGoldens(std::string_view text, std::string_view source) {
  return golden::ParseLines<GoldenCase>(text, source, CaseFromJson);
}

absl::StatusOr<GoldenExpectation> RunGolden(const Searcher& searcher, const Catalogue& catalogue,
                                            const GoldenCase& golden) {
  auto run = RunCase(searcher, catalogue, golden);
  if (!run.ok()) return run.status();
  return std::move(run->found);
}

absl::StatusOr<GoldenReport> CheckGoldens(const Searcher& searcher, const Catalogue& catalogue,
                                          const std::vector<GoldenCase>& goldens, const Network* exact) {
  GoldenReport report;
  for (const GoldenCase& golden : goldens) {
    double worst = 0;
    const auto run = RunCase(searcher, catalogue, golden);
    if (!run.ok()) return run.status();
    const std::string wrong = exact == nullptr ? Compare(golden.expect, run->found, &worst)
                                               : CompareRounded(golden.expect, *run, catalogue, *exact, &worst);
    if (!wrong.empty()) {
      return absl::FailedPreconditionError(absl::StrCat("golden case \"", golden.name, "\": ", wrong));
    }
    ++report.cases;
    report.beams += run->found.sids.size();
    if (worst >= report.worst) report.worst = worst, report.worst_case = golden.name;
  }
  return report;
}

}  // namespace backstory::glass
