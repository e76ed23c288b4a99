#include "serving/engine/extend_steps.h"

#include <algorithm>
#include <vector>

namespace backstory {
namespace {

template <typename T>
void AppendPart(const std::vector<T>& from, size_t begin, size_t end, std::vector<T>* to) {
  to->insert(to->end(), from.begin() + static_cast<ptrdiff_t>(begin), from.begin() + static_cast<ptrdiff_t>(end));
}

// Rows [to->time_us.size(), end) of `from` join `to`, which holds those before.
void AppendRows(const ChannelRows& from, size_t end, ChannelRows* to) {
  const size_t begin = to->time_us.size(),
               width = from.tokens.rows == 0 ? 0 : from.tokens.dense.size() / from.tokens.rows;
  to->tokens.rows = end;
  to->tokens.sparse.resize(from.tokens.sparse.size());
  for (size_t f = 0; f < from.tokens.sparse.size(); ++f) {
    const SparseColumn& column = from.tokens.sparse[f];
    AppendPart(column.offsets, begin + 1, end + 1, &to->tokens.sparse[f].offsets);
    AppendPart(column.ids, column.offsets[begin], column.offsets[end], &to->tokens.sparse[f].ids);
  }
  AppendPart(from.tokens.dense, begin * width, end * width, &to->tokens.dense);
  AppendPart(from.time_us, begin, end, &to->time_us);
  AppendPart(from.action, begin, end, &to->action);
  AppendPart(from.tie, begin, end, &to->tie);
  AppendPart(from.event_id, begin, end, &to->event_id);
  to->closed = std::min(from.closed, end);
}

}  // namespace

size_t StepRows(size_t before) {
  constexpr size_t kPage = 128, kMost = 512, kPairs = size_t{1} << 21;  // (new row, earlier row)
  return std::clamp(kPairs / std::max<size_t>(before, 1) / kPage * kPage, kPage, kMost);
}

absl::Status ExtendInSteps(const grab::Model& model, std::span<const ChannelRows> tokens, grab::UserKv* kv,
                           const BetweenSteps& between) {
  const auto next_of = [&](size_t c) {
    const size_t before = kv->Rows(static_cast<int>(c));
    return std::min(tokens[c].time_us.size(), before + StepRows(before));
  };
  const auto all_of = [&] {
    for (size_t c = 0; c < tokens.size(); ++c) {
      if (next_of(c) < tokens[c].time_us.size()) return false;
    }
    return true;
  };
  std::vector<ChannelRows> part;
  while (between && !model.ExtendsAtOnce() && !all_of()) {
    part.resize(tokens.size());
    for (size_t c = 0; c < tokens.size(); ++c) AppendRows(tokens[c], next_of(c), &part[c]);
    if (absl::Status status = model.Extend(part, kv); !status.ok()) return status;
    between();
  }
  return model.Extend(tokens, kv);
}

}  // namespace backstory
