#include "serving/engine/batch/batch_plan.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "features/hash.h"

namespace backstory {
namespace {

// Rows of equal keys are candidates of one request.
struct RowKey {
  uint32_t user = 0;       // in order of first appearance
  uint32_t signature = 0;  // what else tells requests apart, likewise
  int64_t view_us = 0;     // up to where the history is seen: rows of one user are scored in this order
  int64_t time_us = 0;
  uint32_t row = 0;

  auto Order() const { return std::tuple(user, view_us, time_us, signature, row); }
  bool SameRequest(const RowKey& other) const {
    return user == other.user && time_us == other.time_us && signature == other.signature;
  }
};

// Numbers texts in order of their first appearance.
class Numbering {
 public:
  uint32_t Of(const std::string& text) {
    return numbers_.try_emplace(text, static_cast<uint32_t>(numbers_.size())).first->second;
  }

 private:
  absl::flat_hash_map<std::string, uint32_t> numbers_;
};

template <typename T>
void AppendBytes(T value, std::string* out) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void AppendText(std::string_view text, std::string* out) {
  AppendBytes(static_cast<uint32_t>(text.size()), out);
  out->append(text);
}

std::string_view NamespaceOf(const BatchRows& rows, size_t row, const BatchOptions& options) {
  return rows.namespaces.empty() || rows.namespaces[row].empty() ? std::string_view(options.ns) : rows.namespaces[row];
}

int64_t AsOfOf(const BatchRows& rows, size_t row) {
  return rows.as_of_us.has(row) ? rows.as_of_us.values[row] : AsOf().event_time_us;
}

int64_t KnownByOf(const BatchRows& rows, size_t row) {
  return rows.known_by_us.has(row) ? rows.known_by_us.values[row] : AsOf::kAnyIngestTime;
}

double Number(const NumberFeature& feature, size_t row) {
  return std::visit([row](const auto& values) { return static_cast<double>(values[row]); }, feature.values);
}

// Everything but user, namespace and time, as bytes.
void Signature(const BatchRows& rows, size_t row, std::string* out) {
  out->clear();
  AppendBytes(AsOfOf(rows, row), out);
  AppendBytes(KnownByOf(rows, row), out);
  AppendText(rows.scenes.empty() ? std::string_view() : rows.scenes[row], out);
  AppendBytes(rows.request_ids.has(row) ? rows.request_ids.values[row] : uint64_t{0}, out);
  for (const NumberFeature& feature : rows.request_numbers) {
    AppendBytes(static_cast<char>(feature.valid[row]), out);
    if (feature.valid[row]) AppendBytes(Number(feature, row), out);
  }
  for (const TextFeature& feature : rows.request_texts) AppendText(feature.values[row], out);
  for (const NumberFeature& feature : rows.candidate_numbers) AppendBytes(static_cast<char>(feature.valid[row]), out);
}

bool HasSignature(const BatchRows& rows) {
  return !(rows.as_of_us.values.empty() && rows.known_by_us.values.empty() && rows.scenes.empty() &&
           rows.request_ids.values.empty() && rows.request_numbers.empty() && rows.request_texts.empty() &&
           rows.candidate_numbers.empty());
}

std::vector<RowKey> KeysOf(const BatchRows& rows, const BatchOptions& options, std::vector<BadBatchRow>* bad) {
  std::vector<RowKey> keys;
  keys.reserve(rows.rows);
  Numbering users, signatures;
  std::string text;
  const bool signed_rows = HasSignature(rows);
  for (size_t row = 0; row < rows.rows; ++row) {
    BadBatchRow problem = CheckBatchRow(rows, row, options);
    if (!problem.reason.empty()) {
      bad->push_back(std::move(problem));
      continue;
    }
    RowKey key;
    key.row = static_cast<uint32_t>(row);
    key.time_us = rows.times_us.values[row];
    key.view_us = std::min(key.time_us, AsOfOf(rows, row));
    // A file sorted by user names the last one again, mostly.
    if (!keys.empty() && rows.users[row] == rows.users[keys.back().row] &&
        NamespaceOf(rows, row, options) == NamespaceOf(rows, keys.back().row, options)) {
      key.user = keys.back().user;
    } else {
      text.clear();
      AppendText(NamespaceOf(rows, row, options), &text);
      text.append(rows.users[row]);
      key.user = users.Of(text);
    }
    if (signed_rows) {
      Signature(rows, row, &text);
      key.signature = signatures.Of(text);
    }
    keys.push_back(key);
  }
  return keys;
}

// Candidate columns and features of one request.
FeatureMap RequestFeatures(const BatchRows& rows, size_t row) {
  FeatureMap features;
  for (const NumberFeature& feature : rows.request_numbers) {
    if (feature.valid[row]) features[feature.name] = {.text = {}, .number = Number(feature, row), .is_number = true};
  }
  for (const TextFeature& feature : rows.request_texts) {
    if (!feature.values[row].empty()) features[feature.name].text = feature.values[row];
  }
  return features;
}

}  // namespace

absl::StatusOr<BatchPlan> PlanBatch(const BatchRows& rows, const BatchOptions& options) {
  if (auto status = CheckBatchColumns(rows); !status.ok()) return status;
  BatchPlan plan;
  std::vector<RowKey> keys = KeysOf(rows, options, &plan.bad);
  const auto before = [](const RowKey& a, const RowKey& b) { return a.Order() < b.Order(); };
  if (!std::is_sorted(keys.begin(), keys.end(), before)) std::sort(keys.begin(), keys.end(), before);
  plan.order.reserve(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    const uint32_t at = static_cast<uint32_t>(i);
    const bool new_user = i == 0 || keys[i].user != keys[i - 1].user;
    if (new_user) plan.users.push_back({static_cast<uint32_t>(plan.requests.size()), 0});
    if (new_user || !keys[i].SameRequest(keys[i - 1]) || plan.requests.back().size() == kCandidatesMax) {
      plan.requests.push_back({at, at});
    }
    plan.requests.back().end = at + 1;
    plan.users.back().end = static_cast<uint32_t>(plan.requests.size());
    plan.order.push_back(keys[i].row);
  }
  return plan;
}

RankQuery BatchQuery(const BatchRows& rows, std::span<const uint32_t> members, const BatchOptions& options) {
  const size_t row = members.front();
  RankQuery query;
  query.ns = NamespaceOf(rows, row, options);
  query.scene = rows.scenes.empty() || rows.scenes[row].empty() ? std::string_view(options.scene) : rows.scenes[row];
  query.units.user = rows.users[row];
  query.request_id = rows.request_ids.has(row) ? rows.request_ids.values[row] : 0;
  query.now_us = rows.times_us.values[row];
  query.as_of = {AsOfOf(rows, row), KnownByOf(rows, row)};
  query.criticality = Criticality::kBatch;
  query.suppress_exposure = true;
  query.parameters = options.parameters;
  query.features = RequestFeatures(rows, row);
  query.candidates.item_ids.reserve(members.size());
  for (const uint32_t member : members) query.candidates.item_ids.push_back(rows.items.values[member]);
  for (const NumberFeature& feature : rows.candidate_numbers) {
    if (!feature.valid[row]) continue;  // of no member: whether it is there is part of a request's key
    std::vector<float>& values = query.candidates.numbers[feature.name];
    for (const uint32_t member : members) values.push_back(static_cast<float>(Number(feature, member)));
  }
  for (const TextFeature& feature : rows.candidate_texts) {
    std::vector<std::string>& values = query.candidates.texts[feature.name];
    for (const uint32_t member : members) values.emplace_back(feature.values[member]);
  }
  return query;
}

}  // namespace backstory
