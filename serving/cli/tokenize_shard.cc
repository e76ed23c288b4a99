#include "serving/cli/tokenize_shard.h"

#include <charconv>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "features/incremental.h"
#include "features/user_summary.h"
#include "serving/cli/tokenize_columns.h"

namespace backstory {
namespace {

// Builds the tensors of one shard, user by user.
class ShardBuilder {
 public:
  ShardBuilder(const Corpus& corpus, AsOf as_of, const TokenizerConfig& config);
  void Add(const UserEvents& user);
  const TokenTensors& tensors() const { return tensors_; }
  const ShardCounts& counts() const { return counts_; }

 private:
  void AddTarget(const std::string& user, const HistoryRow& row, const UserSummary& summary);
  void LogFeatures(const HistoryRow& row, FeatureMap* request, CandidateColumns* candidates) const;

  const Corpus& corpus_;
  const AsOf as_of_;
  const TokenizerConfig& config_;
  ItemLookup items_;
  std::set<std::string> number_attributes_;  // request features that the configuration reads as numbers
  TokenTensors tensors_;
  std::vector<RowColumns> channels_;
  FullColumns full_;
  ShardCounts counts_;
};

ShardBuilder::ShardBuilder(const Corpus& corpus, AsOf as_of, const TokenizerConfig& config)
    : corpus_(corpus),
      as_of_(as_of),
      config_(config),
      items_([&corpus](uint64_t id) { return corpus.Find(id); }),
      full_("f", config, &tensors_) {
  for (size_t c = 0; c < config.channels.size(); ++c) {
    channels_.emplace_back(absl::StrCat("p", c), config, &tensors_);
    tensors_.I64(absl::StrCat("p", c, ".offsets")).push_back(0);
  }
  for (const char* name : {"users.id.offsets", "f.offsets", "f.scene_offsets"}) tensors_.I64(name).push_back(0);
  for (const char* name : {"f.time_us", "f.tie", "f.item_id", "f.event_id"}) tensors_.I64(name);
  for (const char* name : {"users.id", "f.scene"}) tensors_.U8(name);
  tensors_.F32("f.label");
  for (const DenseFieldConfig& field : config.full_dense) {
    if (field.source == DenseSource::kRequestNumber) number_attributes_.insert(field.attribute);
  }
}

// The context of the logged event stands for the request's features and for the candidate's columns.
void ShardBuilder::LogFeatures(const HistoryRow& row, FeatureMap* request, CandidateColumns* candidates) const {
  for (const ContextField& field : row.context) {
    float number = 0;
    const auto [end, error] = std::from_chars(field.value.data(), field.value.data() + field.value.size(), number);
    const bool is_number = error == std::errc() && end == field.value.data() + field.value.size();
    if (is_number) candidates->numbers.emplace(field.name, std::vector<float>{number});
    candidates->texts.emplace(field.name, std::vector<std::string>{field.value});
    FeatureValue value;
    value.is_number = is_number && number_attributes_.contains(field.name);
    value.number = number;
    value.text = field.value;
    request->emplace(field.name, std::move(value));
  }
}

void ShardBuilder::AddTarget(const std::string& user, const HistoryRow& row, const UserSummary& summary) {
  FeatureMap request;
  CandidateColumns candidates;
  candidates.item_ids.push_back(row.item_id);
  LogFeatures(row, &request, &candidates);
  CandidateInput input;
  input.user = user;
  input.scene = row.scene;
  input.now_us = row.time_us;
  input.tie = row.tie;
  input.summary = &summary;
  input.request = &request;
  input.candidates = &candidates;
  input.items = items_;
  input.counts = [&](uint64_t id) {
    return corpus_.counts.CountsBefore(id, row.time_us, config_.stats_granularity_us);
  };
  full_.Append(TokenizeCandidates(input, config_, nullptr));
  tensors_.I64("f.time_us").push_back(row.time_us);
  tensors_.I64("f.tie").push_back(row.tie);
  tensors_.I64("f.item_id").push_back(static_cast<int64_t>(row.item_id));
  tensors_.I64("f.event_id").push_back(static_cast<int64_t>(row.event_id));
  tensors_.F32("f.label").push_back(row.positive ? 1.0f : 0.0f);
  std::vector<uint8_t>& scenes = tensors_.U8("f.scene");
  scenes.insert(scenes.end(), row.scene.begin(), row.scene.end());
  tensors_.I64("f.scene_offsets").push_back(static_cast<int64_t>(scenes.size()));
  ++counts_.targets;
  counts_.positives += row.positive ? 1 : 0;
}

void ShardBuilder::Add(const UserEvents& user) {
  const std::vector<HistoryRow> rows = JoinHistory(user.events, as_of_, config_);
  const std::vector<ChannelRows> channels = TokenizeHistory(rows, as_of_.event_time_us, items_, config_);
  for (size_t c = 0; c < channels.size(); ++c) {
    channels_[c].Append(channels[c], rows);
    tensors_.I64(absl::StrCat("p", c, ".offsets"))
        .push_back(static_cast<int64_t>(tensors_.I64(absl::StrCat("p", c, ".time_us")).size()));
  }
  SummaryAccumulator past;
  const size_t closed = ClosedRows(rows, as_of_.event_time_us);  // the label of an open row is not known yet
  for (const HistoryRow& row : std::span(rows).first(closed)) {
    if (row.labelled) AddTarget(user.user, row, past.At(rows, row.time_us, row.tie, items_));
  }
  std::vector<uint8_t>& ids = tensors_.U8("users.id");
  ids.insert(ids.end(), user.user.begin(), user.user.end());
  tensors_.I64("users.id.offsets").push_back(static_cast<int64_t>(ids.size()));
  tensors_.I64("f.offsets").push_back(static_cast<int64_t>(counts_.targets));
  ++counts_.users;
  counts_.rows += rows.size();
}

void AddCase(const GoldenCase& golden, const std::string& prefix, const TokenizerConfig& config,
             TokenTensors* tensors) {
  const ItemLookup items = [&golden](uint64_t id) -> const Item* {
    const auto found = golden.items.find(id);
    return found == golden.items.end() ? nullptr : &found->second;
  };
  const std::vector<HistoryRow> rows = JoinHistory(golden.events, {.event_time_us = golden.now_us}, config);
  const std::vector<ChannelRows> channels = TokenizeHistory(rows, golden.now_us, items, config);
  for (size_t c = 0; c < channels.size(); ++c) {
    RowColumns(absl::StrCat(prefix, "p", c), config, tensors).Append(channels[c], rows);
  }
  CandidateInput input;
  input.user = golden.user;
  input.scene = golden.scene;
  input.now_us = golden.now_us;
  input.tie = golden.request_id != 0 ? TieKey(golden.request_id, golden.now_us) : CandidateTokens::kNoTie;
  const UserSummary summary = Summarise(rows, golden.now_us, input.tie, items);
  input.summary = &summary;
  input.request = &golden.features;
  input.candidates = &golden.candidates;
  input.items = items;
  input.counts = [&golden](uint64_t id) {
    const auto found = golden.counts.find(id);
    return found == golden.counts.end() ? ItemCounts{} : found->second;
  };
  FullColumns(prefix + "f", config, tensors).Append(TokenizeCandidates(input, config, nullptr));
  tensors->I64(prefix + "now_us").push_back(golden.now_us);
  tensors->I64(prefix + "tie").push_back(input.tie);
  std::vector<uint8_t>& name = tensors->U8(prefix + "name");
  name.assign(golden.name.begin(), golden.name.end());
}

}  // namespace

absl::StatusOr<ShardCounts> WriteTokenShard(const Corpus& corpus, std::span<const UserEvents> users, AsOf as_of,
                                            const TokenizerConfig& config, const std::string& path,
                                            const std::map<std::string, std::string>& metadata) {
  ShardBuilder builder(corpus, as_of, config);
  for (const UserEvents& user : users) builder.Add(user);
  if (auto status = builder.tensors().Write(path, metadata); !status.ok()) return status;
  return builder.counts();
}

absl::Status WriteCaseTokens(std::span<const GoldenCase> cases, const TokenizerConfig& config, const std::string& path,
                             const std::map<std::string, std::string>& metadata) {
  TokenTensors tensors;
  for (size_t i = 0; i < cases.size(); ++i) AddCase(cases[i], absl::StrCat("case", i, "."), config, &tensors);
  return tensors.Write(path, metadata);
}

}  // namespace backstory
