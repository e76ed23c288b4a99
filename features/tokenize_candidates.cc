// Full tokens: what the model is told about each candidate, beyond the history.
#include <algorithm>
#include <cassert>
#include <cmath>
#include <utility>

#include "features/candidate_slices.h"
#include "features/field_ids.h"
#include "features/tokenizer.h"

namespace backstory {
namespace {

using internal::FieldIds;

constexpr std::string_view kCandidatePrefix = "cand.";

bool IsCandidateColumn(const std::string& attribute) { return attribute.starts_with(kCandidatePrefix); }

std::string ColumnName(const std::string& attribute) {
  return IsCandidateColumn(attribute) ? attribute.substr(kCandidatePrefix.size()) : attribute;
}

double Logit(double p) {
  const double inside = std::clamp(p, 1e-6, 1 - 1e-6);
  return std::log(inside / (1 - inside));
}

double Smoothed(double positives, double n, double prior, double weight) {
  return n + weight > 0 ? (positives + prior * weight) / (n + weight) : prior;
}

double RateFeature(double positives, double n, const DenseFieldConfig& field, double prior_logit) {
  return Logit(Smoothed(positives, n, field.prior, field.prior_weight)) - prior_logit;
}

float Scaled(double value, const DenseFieldConfig& field) {
  const double scaled = value * field.scale;
  return std::isnan(scaled) ? 0.0f : static_cast<float>(std::clamp(scaled, -10.0, 10.0));
}

// Candidates [first, first + count) of one request being tokenised: the input, and per candidate what several fields
// need. Candidate i is the i-th of them, `At(i)` of the request.
class Builder {
 public:
  Builder(const CandidateInput& input, const TokenizerConfig& config, size_t first, size_t count, FeatureReport* report)
      : input_(input), config_(config), first_(first), count_(count), report_(report) {}
  CandidateSlice Build();

 private:
  void Resolve();
  void UserColumn(const SparseFieldConfig& field, SparseColumn* column);
  void ItemColumn(const SparseFieldConfig& field, SparseColumn* column);
  void CategoryColumn(const std::vector<std::string>* texts, FieldIds* ids, SparseColumn* column);
  void YearColumn(const std::vector<float>* years, FieldIds* ids, SparseColumn* column);
  void TextColumn(const SparseFieldConfig& field, FieldIds* ids, SparseColumn* column);
  void CandidateColumn(const SparseFieldConfig& field, FieldIds* ids, SparseColumn* column);
  float UserDense(const DenseFieldConfig& field);
  // Values of all candidates, `width` floats apart.
  void ItemDense(const DenseFieldConfig& field, size_t width, float* out);
  void RateColumn(const DenseFieldConfig& field, size_t width, float* out);
  void AgeColumn(const DenseFieldConfig& field, size_t width, float* out);
  void NumberColumn(const DenseFieldConfig& field, size_t width, float* out);
  void CategoryRateColumn(const DenseFieldConfig& field, size_t width, float* out);

  size_t size() const { return count_; }
  size_t At(size_t i) const { return first_ + i; }
  const FeatureValue* Request(const std::string& name) const;
  template <typename Columns>
  static auto Find(const Columns& columns, const std::string& name) -> decltype(&columns.begin()->second) {
    const auto found = columns.find(name);
    return found == columns.end() ? nullptr : &found->second;
  }
  // Where a value came from; a null `item` is an unknown item.
  void FromRequest() { ++report_->from_request; }
  void FromItem(bool present) { ++(present ? report_->from_catalog : report_->defaulted); }

  const CandidateInput& input_;
  const TokenizerConfig& config_;
  const size_t first_, count_;
  FeatureReport* report_;
  UserSummary no_past_;
  const UserSummary* past_ = nullptr;
  std::vector<const Item*> own_items_;  // if the input has functions
  std::vector<RateCounts> own_counts_;
  std::span<const Item* const> items_;  // [candidates]
  std::span<const RateCounts> counts_;  // [candidates]
};

const FeatureValue* Builder::Request(const std::string& name) const {
  return input_.request == nullptr ? nullptr : Find(*input_.request, name);
}

void Builder::Resolve() {
  past_ = input_.summary == nullptr ? &no_past_ : input_.summary;
  const std::span<const uint64_t> ids = std::span(input_.candidates->item_ids).subspan(first_, count_);
  items_ = input_.found_items;
  counts_ = input_.found_counts;
  if (items_.empty()) {
    own_items_.resize(size());
    for (size_t i = 0; i < size() && input_.items; ++i) own_items_[i] = input_.items(ids[i]);
    items_ = own_items_;
  }
  if (counts_.empty()) {
    own_counts_.resize(size());
    const bool wants = WantsCounts(config_) && input_.counts;
    for (size_t i = 0; i < size() && wants; ++i) own_counts_[i] = CountsByRule(input_.counts(ids[i]), config_.label);
    counts_ = own_counts_;
  }
  assert(items_.size() == size() && counts_.size() == size());
  report_->unknown_items += static_cast<uint32_t>(std::count(items_.begin(), items_.end(), nullptr));
}

void Builder::UserColumn(const SparseFieldConfig& field, SparseColumn* column) {
  FieldIds ids(field, config_, &column->ids);
  switch (field.source) {
    case SparseSource::kUserId:
      ids.Text(input_.user);
      break;
    case SparseSource::kScene:
      ids.Text(input_.scene);
      break;
    case SparseSource::kHourOfDay:
      ids.Number(internal::HourOfDay(input_.now_us));
      break;
    case SparseSource::kDayOfWeek:
      ids.Number(internal::DayOfWeek(input_.now_us));
      break;
    default: {
      const FeatureValue* value = Request(field.attribute);
      const bool present = value != nullptr && !value->is_number && !value->text.empty();
      present ? ids.Hashed(value->text) : ids.Missing();
      ++(present ? report_->from_request : report_->defaulted);
    }
  }
  column->offsets.push_back(static_cast<uint32_t>(column->ids.size()));
}

void Builder::CategoryColumn(const std::vector<std::string>* texts, FieldIds* ids, SparseColumn* column) {
  constexpr size_t kAhead = 8;  // items of a large catalog are not in the processor's cache: an item, then its texts
  for (size_t i = 0; i < size(); ++i) {
    if (i + 2 * kAhead < size()) __builtin_prefetch(items_[i + 2 * kAhead]);
    if (i + kAhead < size() && items_[i + kAhead] != nullptr) {
      __builtin_prefetch(items_[i + kAhead]->categories.data());
    }
    if (texts != nullptr && !(*texts)[At(i)].empty()) {
      ids->CategoryText((*texts)[At(i)]);
      FromRequest();
    } else {
      ids->OfItem(SparseSource::kItemCategories, items_[i]);
      FromItem(items_[i] != nullptr && !items_[i]->categories.empty());
    }
    column->offsets.push_back(static_cast<uint32_t>(column->ids.size()));
  }
}

void Builder::YearColumn(const std::vector<float>* years, FieldIds* ids, SparseColumn* column) {
  for (size_t i = 0; i < size(); ++i) {
    if (years != nullptr && std::isfinite((*years)[At(i)])) {
      ids->Year(static_cast<int32_t>(std::clamp((*years)[At(i)], -9999.0f, 9999.0f)));
      FromRequest();
    } else {
      ids->OfItem(SparseSource::kItemYear, items_[i]);
      FromItem(items_[i] != nullptr && items_[i]->year != 0);
    }
    column->offsets.push_back(static_cast<uint32_t>(column->ids.size()));
  }
}

// A mutable item string: the candidate column of that name wins over the catalog.
void Builder::TextColumn(const SparseFieldConfig& field, FieldIds* ids, SparseColumn* column) {
  const std::vector<std::string>* texts = Find(input_.candidates->texts, field.attribute);
  for (size_t i = 0; i < size(); ++i) {
    if (texts != nullptr && !(*texts)[At(i)].empty()) {
      ids->Hashed((*texts)[At(i)]);
      FromRequest();
    } else {
      const std::string* text = items_[i] == nullptr ? nullptr : Find(items_[i]->strings, field.attribute);
      text == nullptr ? ids->Missing() : ids->Text(*text);
      FromItem(text != nullptr);
    }
    column->offsets.push_back(static_cast<uint32_t>(column->ids.size()));
  }
}

void Builder::CandidateColumn(const SparseFieldConfig& field, FieldIds* ids, SparseColumn* column) {
  const std::vector<std::string>* texts = Find(input_.candidates->texts, ColumnName(field.attribute));
  for (size_t i = 0; i < size(); ++i) {
    const bool present = texts != nullptr && !(*texts)[At(i)].empty();
    present ? ids->Hashed((*texts)[At(i)]) : ids->Missing();
    ++(present ? report_->from_request : report_->defaulted);
    column->offsets.push_back(static_cast<uint32_t>(column->ids.size()));
  }
}

void Builder::ItemColumn(const SparseFieldConfig& field, SparseColumn* column) {
  FieldIds ids(field, config_, &column->ids);
  column->offsets.reserve(size() + 1);
  column->ids.reserve(size());
  switch (field.source) {
    case SparseSource::kItemCategories:
      return CategoryColumn(Find(input_.candidates->texts, "categories"), &ids, column);
    case SparseSource::kItemYear:
      return YearColumn(Find(input_.candidates->numbers, "year"), &ids, column);
    case SparseSource::kItemString:
      return TextColumn(field, &ids, column);
    case SparseSource::kRequestFeature:
      return CandidateColumn(field, &ids, column);
    default:
      break;
  }
  for (size_t i = 0; i < size(); ++i) {
    if (field.source == SparseSource::kItemId) {
      ids.Hashed(input_.candidates->item_ids[At(i)]);
    } else {
      assert(field.source == SparseSource::kItemSid);
      ids.OfItem(field.source, items_[i]);
      FromItem(items_[i] != nullptr && !items_[i]->sid.empty());
    }
    column->offsets.push_back(static_cast<uint32_t>(column->ids.size()));
  }
}

float Builder::UserDense(const DenseFieldConfig& field) {
  const UserSummary& past = *past_;
  switch (field.source) {
    case DenseSource::kUserRate:
      return Scaled(RateFeature(past.positives, past.rows, field, Logit(field.prior)), field);
    case DenseSource::kUserLogCount:
      return Scaled(std::log1p(static_cast<double>(past.rows)), field);
    case DenseSource::kUserMeanValue:
      return past.value_count == 0 ? 0.0f : Scaled(past.value_sum / past.value_count - field.prior_value, field);
    case DenseSource::kUserLogGap:
      if (past.newest_us < 0) return 0.0f;
      return Scaled(std::log1p(static_cast<double>(input_.now_us - past.newest_us) / 1e6), field);
    default: {
      assert(field.source == DenseSource::kRequestNumber);
      const FeatureValue* value = Request(field.attribute);
      const bool present = value != nullptr && value->is_number && std::isfinite(value->number);
      ++(present ? report_->from_request : report_->defaulted);
      return present ? Scaled(value->number, field) : 0.0f;
    }
  }
}

void Builder::AgeColumn(const DenseFieldConfig& field, size_t width, float* out) {
  const std::vector<float>* years = Find(input_.candidates->numbers, "year");
  const int now = internal::YearOf(input_.now_us);
  for (size_t i = 0; i < size(); ++i, out += width) {
    double year = items_[i] == nullptr ? 0 : items_[i]->year;
    if (years != nullptr && std::isfinite((*years)[At(i)])) {
      year = (*years)[At(i)];
      FromRequest();
    } else {
      FromItem(year != 0);
    }
    *out = Scaled(year == 0 ? 0 : (now - year) / 10, field);
  }
}

// kItemNumber and candidate columns; 0 if absent.
void Builder::NumberColumn(const DenseFieldConfig& field, size_t width, float* out) {
  assert(field.source == DenseSource::kItemNumber || field.source == DenseSource::kRequestNumber);
  const std::vector<float>* numbers = Find(input_.candidates->numbers, ColumnName(field.attribute));
  const bool of_items = field.source == DenseSource::kItemNumber;
  for (size_t i = 0; i < size(); ++i, out += width) {
    double value = 0;
    if (numbers != nullptr && std::isfinite((*numbers)[At(i)])) {
      FromRequest();
      value = (*numbers)[At(i)];
    } else {
      const double* number = of_items && items_[i] != nullptr ? Find(items_[i]->numbers, field.attribute) : nullptr;
      FromItem(number != nullptr);
      if (number != nullptr) value = *number;
    }
    *out = Scaled(value, field);
  }
}

void Builder::CategoryRateColumn(const DenseFieldConfig& field, size_t width, float* out) {
  const std::vector<std::string>* texts = Find(input_.candidates->texts, "categories");
  const double user_rate = Smoothed(past_->positives, past_->rows, field.prior, field.prior_weight);
  const double user_logit = Logit(user_rate);
  for (size_t i = 0; i < size(); ++i, out += width) {
    double n = 0, positives = 0;
    const auto add = [&](std::string_view category) {
      const auto found = past_->categories.find(category);
      if (found == past_->categories.end()) return;
      n += found->second.first;
      positives += found->second.second;
    };
    if (texts != nullptr && !(*texts)[At(i)].empty()) {
      internal::ForEachCategory((*texts)[At(i)], add);
    } else if (items_[i] != nullptr) {
      for (const std::string& category : items_[i]->categories) add(category);
    }
    *out = Scaled(Logit(Smoothed(positives, n, user_rate, field.prior_weight)) - user_logit, field);
  }
}

void Builder::RateColumn(const DenseFieldConfig& field, size_t width, float* out) {
  const double prior_logit = Logit(field.prior);
  for (size_t i = 0; i < size(); ++i, out += width) {
    *out = Scaled(RateFeature(counts_[i].positives, counts_[i].n, field, prior_logit), field);
  }
}

void Builder::ItemDense(const DenseFieldConfig& field, size_t width, float* out) {
  switch (field.source) {
    case DenseSource::kItemRate:
      return RateColumn(field, width, out);
    case DenseSource::kItemLogCount:
      for (size_t i = 0; i < size(); ++i) out[i * width] = Scaled(std::log1p(counts_[i].n), field);
      return;
    case DenseSource::kItemMeanValue:
      for (size_t i = 0; i < size(); ++i) {
        const RateCounts& counts = counts_[i];
        out[i * width] =
            counts.value_count == 0 ? 0.0f : Scaled(counts.value_sum / counts.value_count - field.prior_value, field);
      }
      return;
    case DenseSource::kItemAge:
      return AgeColumn(field, width, out);
    case DenseSource::kUserCategoryRate:
      return CategoryRateColumn(field, width, out);
    default:
      return NumberColumn(field, width, out);
  }
}

CandidateSlice Builder::Build() {
  Resolve();
  CandidateSlice slice;
  slice.item.rows = size();
  std::vector<const DenseFieldConfig*> item_dense;
  for (const DenseFieldConfig& field : config_.full_dense) {
    if (!IsUserSide(field)) item_dense.push_back(&field);
  }
  for (const SparseFieldConfig& field : config_.full) {
    if (!IsUserSide(field)) ItemColumn(field, &slice.item.sparse.emplace_back());
  }
  const size_t width = item_dense.size();
  slice.item.dense.resize(size() * width);
  for (size_t f = 0; f < width; ++f) ItemDense(*item_dense[f], width, slice.item.dense.data() + f);
  if (first_ > 0) return slice;
  slice.user.rows = 1;
  for (const SparseFieldConfig& field : config_.full) {
    if (IsUserSide(field)) UserColumn(field, &slice.user.sparse.emplace_back());
  }
  for (const DenseFieldConfig& field : config_.full_dense) {
    if (IsUserSide(field)) slice.user.dense.push_back(UserDense(field));
  }
  return slice;
}

}  // namespace

bool WantsCounts(const TokenizerConfig& config) {
  return std::any_of(config.full_dense.begin(), config.full_dense.end(), [](const DenseFieldConfig& field) {
    return field.source == DenseSource::kItemRate || field.source == DenseSource::kItemLogCount ||
           field.source == DenseSource::kItemMeanValue;
  });
}

CandidateSlice TokenizeSlice(const CandidateInput& input, const TokenizerConfig& config, size_t first, size_t count) {
  assert(input.candidates != nullptr && first + count <= input.candidates->item_ids.size());
  FeatureReport report;
  CandidateSlice slice = Builder(input, config, first, count, &report).Build();
  slice.report = report;
  return slice;
}

CandidateTokens JoinSlices(const CandidateInput& input, std::span<CandidateSlice> slices, FeatureReport* report) {
  CandidateTokens tokens;
  tokens.now_us = input.now_us;
  tokens.tie = input.tie;
  tokens.user = std::move(slices.front().user);
  tokens.item = std::move(slices.front().item);
  if (report != nullptr) *report = slices.front().report;
  for (const CandidateSlice& slice : slices.subspan(1)) {
    tokens.item.rows += slice.item.rows;
    for (size_t f = 0; f < slice.item.sparse.size(); ++f) {
      const SparseColumn& from = slice.item.sparse[f];
      SparseColumn& to = tokens.item.sparse[f];
      const auto shift = static_cast<uint32_t>(to.ids.size());
      for (size_t i = 1; i < from.offsets.size(); ++i) to.offsets.push_back(from.offsets[i] + shift);
      to.ids.insert(to.ids.end(), from.ids.begin(), from.ids.end());
    }
    tokens.item.dense.insert(tokens.item.dense.end(), slice.item.dense.begin(), slice.item.dense.end());
    if (report == nullptr) continue;
    report->unknown_items += slice.report.unknown_items;
    report->from_request += slice.report.from_request;
    report->from_catalog += slice.report.from_catalog;
    report->defaulted += slice.report.defaulted;
  }
  return tokens;
}

CandidateTokens TokenizeCandidates(const CandidateInput& input, const TokenizerConfig& config, FeatureReport* report) {
  CandidateSlice slice = TokenizeSlice(input, config, 0, input.candidates->item_ids.size());
  return JoinSlices(input, {&slice, 1}, report);
}

bool IsUserSide(const SparseFieldConfig& field) {
  switch (field.source) {
    case SparseSource::kUserId:
    case SparseSource::kScene:
    case SparseSource::kHourOfDay:
    case SparseSource::kDayOfWeek:
      return true;
    case SparseSource::kRequestFeature:
      return !IsCandidateColumn(field.attribute);
    default:
      return false;
  }
}

bool IsUserSide(const DenseFieldConfig& field) {
  switch (field.source) {
    case DenseSource::kUserRate:
    case DenseSource::kUserLogCount:
    case DenseSource::kUserMeanValue:
    case DenseSource::kUserLogGap:
      return true;
    case DenseSource::kRequestNumber:
      return !IsCandidateColumn(field.attribute);
    default:
      return false;
  }
}

RateCounts CountsByRule(const ItemCounts& counts, const LabelRule& rule) {
  RateCounts out;
  for (const ItemCounts::Cell& cell : counts.cells) {
    if (cell.action != static_cast<uint16_t>(rule.action)) continue;
    const double value = cell.value_bin / 2.0;
    const double count = static_cast<double>(cell.count);
    out.value_count += count;
    out.value_sum += value * count;
    // Bin 0 holds everything up to 0.5, negative values too; the top bin is open above.
    if (value >= rule.min_value || cell.value_bin == 15) out.positives += count;
  }
  out.n = out.value_count;
  if (rule.unlabelled_is_negative) out.n = std::max(out.n, static_cast<double>(counts.exposures));
  return out;
}

}  // namespace backstory
