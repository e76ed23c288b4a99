#include "models/grab/segment_check.h"

#include <limits>
#include <string>

#include "absl/strings/str_cat.h"

namespace backstory::grab {

absl::Status CheckChannels(const Config& config, size_t channels) {
  if (channels == static_cast<size_t>(config.channels())) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(channels, " channels of rows, the model has ", config.channels()));
}

absl::Status CheckHistory(const Config& config, const TokenNet& partial, const ChannelRows& rows, size_t channel,
                          const ChannelState& state) {
  const std::string what = absl::StrCat("channel ", channel);
  const size_t n = rows.time_us.size();
  if (rows.tokens.rows != n || rows.action.size() != n || rows.tie.size() != n || rows.event_id.size() != n) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": columns have different lengths"));
  }
  if (n < state.rows()) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": ", n, " rows given, the state has ", state.rows(), " already; truncate it first"));
  }
  if (n > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": ", n, " rows, the limit is 2^31 - 1"));
  }
  for (size_t i = state.rows(); i < n; ++i) {
    if (rows.action[i] < 0 || rows.action[i] >= config.n_act - 1) {
      return absl::InvalidArgumentError(absl::StrCat(what, ": action class ", rows.action[i], " of row ", i,
                                                     ", the limit is n_act - 2 = ", config.n_act - 2));
    }
    if (i > 0 && rows.time_us[i] < rows.time_us[i - 1]) {
      return absl::InvalidArgumentError(absl::StrCat(what, ": time of row ", i, " is before that of row ", i - 1));
    }
  }
  if (state.rows() > 0 && state.index().time_us.back() != rows.time_us[state.rows() - 1]) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": row ", state.rows() - 1, " is not the one that was appended"));
  }
  return partial.CheckItem(rows.tokens, state.rows(), what);
}

absl::Status CheckSegment(const Config& config, const TokenNet& full, const ScoreSegment& segment, size_t index) {
  const std::string what = absl::StrCat("segment ", index);
  const size_t channels = static_cast<size_t>(config.channels());
  if (segment.candidates == nullptr || (segment.logits == nullptr && segment.candidates->item.rows > 0)) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": candidates or logits missing"));
  }
  if (segment.candidates->user.rows != 1) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": ", segment.candidates->user.rows, " user rows, must be 1"));
  }
  if (segment.kv != nullptr && segment.visible_rows.size() != channels) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": visible_rows of ", segment.visible_rows.size(), " channels, the model has ", channels));
  }
  if (!segment.first_row.empty() && segment.first_row.size() != channels) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": first_row of ", segment.first_row.size(), " channels, the model has ", channels));
  }
  for (size_t c = 0; segment.kv != nullptr && c < channels; ++c) {
    const size_t rows = segment.kv->Rows(static_cast<int>(c));
    if (segment.visible_rows[c] > rows) {
      return absl::InvalidArgumentError(
          absl::StrCat(what, ": visible_rows ", segment.visible_rows[c], " of channel ", c, ", the state has ", rows));
    }
  }
  if (segment.explain_top > 0 && segment.attributions == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": explain_top without attributions"));
  }
  if (absl::Status status = full.CheckUser(segment.candidates->user, what + " user side"); !status.ok()) return status;
  return full.CheckItem(segment.candidates->item, 0, what + " item side");
}

}  // namespace backstory::grab
