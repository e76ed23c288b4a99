#include "models/grab/segment_check.h"

#include <string>

#include "absl/strings/str_cat.h"

namespace backstory::grab {

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
