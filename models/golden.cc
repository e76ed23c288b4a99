#include "models/golden.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"

namespace backstory {

absl::StatusOr<std::vector<float>> ScoreGolden(const grab::Model& model, const GoldenCase& golden) {
  const TokenizerConfig& config = model.config().tokenizer;
  const auto item = [&](uint64_t id) -> const Item* {
    const auto it = golden.items.find(id);
    return it == golden.items.end() ? nullptr : &it->second;
  };
  const AsOf as_of{.event_time_us = golden.now_us};
  const std::vector<HistoryRow> rows = JoinHistory(golden.events, as_of, config);
  const std::vector<ChannelRows> channels = TokenizeHistory(rows, golden.now_us, item, config);
  const int64_t tie = golden.request_id != 0 ? TieKey(golden.request_id, golden.now_us) : CandidateTokens::kNoTie;
  const UserSummary summary = Summarise(rows, golden.now_us, tie, item);

  CandidateInput input;
  input.user = golden.user;
  input.scene = golden.scene;
  input.now_us = golden.now_us;
  input.tie = tie;
  input.summary = &summary;
  input.request = &golden.features;
  input.candidates = &golden.candidates;
  input.items = item;
  input.counts = [&](uint64_t id) {
    const auto it = golden.counts.find(id);
    return it == golden.counts.end() ? ItemCounts{} : it->second;
  };
  FeatureReport report;
  const CandidateTokens candidates = TokenizeCandidates(input, config, &report);

  const std::unique_ptr<grab::UserKv> kv = model.NewState();
  if (absl::Status s = model.Extend(channels, kv.get()); !s.ok()) return s;
  std::vector<size_t> visible;
  for (const ChannelRows& channel : channels) visible.push_back(channel.time_us.size());

  std::vector<float> logits(golden.candidates.item_ids.size() * model.config().tasks.size());
  grab::ScoreSegment segment;
  segment.kv = kv.get();
  segment.visible_rows = visible;
  segment.candidates = &candidates;
  segment.logits = logits.data();
  if (absl::Status s = model.Score({&segment, 1}); !s.ok()) return s;
  return logits;
}

absl::StatusOr<GoldenReport> CheckGoldens(const grab::Model& model, const std::vector<GoldenCase>& goldens,
                                          double tolerance) {
  const size_t tasks = model.config().tasks.size();
  GoldenReport report;
  for (const GoldenCase& golden : goldens) {
    const std::string where = absl::StrCat("golden case \"", golden.name, "\"");
    if (golden.logits.size() != golden.candidates.item_ids.size() * tasks) {
      return absl::FailedPreconditionError(absl::StrCat(where, ": logits: expected ", golden.candidates.item_ids.size(),
                                                        " x ", tasks, ", found ", golden.logits.size(), " numbers"));
    }
    const auto found = ScoreGolden(model, golden);
    if (!found.ok()) return absl::Status(found.status().code(), absl::StrCat(where, ": ", found.status().message()));
    const double allowed = std::max(golden.tolerance, tolerance);
    double scale = 1;
    for (float logit : golden.logits) scale = std::max(scale, std::abs(static_cast<double>(logit)));
    for (size_t i = 0; i < found->size(); ++i) {
      const double difference = std::abs(static_cast<double>((*found)[i]) - golden.logits[i]) / scale;
      const std::string cell = absl::StrCat("[", i / tasks, "][", i % tasks, "]");
      // Written so that a NaN is beyond every tolerance.
      if (!(difference <= allowed)) {
        return absl::FailedPreconditionError(absl::StrCat(where, ": logit", cell, ": expected ", golden.logits[i],
                                                          ", found ", (*found)[i], ", tolerance ", allowed * scale));
      }
      if (difference > report.worst || report.worst_case.empty()) {
        report.worst = difference;
        report.worst_case = absl::StrCat(golden.name, cell);
      }
    }
    ++report.cases;
    report.logits += found->size();
  }
  return report;
}

}  // namespace backstory
