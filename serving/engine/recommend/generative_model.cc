#include "serving/engine/recommend/generative_model.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace backstory {

absl::StatusOr<glass::Quantiser::Encoded> GenerativeModel::Encode(const Item& item) const {
  const std::string& own = config().embedding_space;
  if (!own.empty() && !item.embedding_space.empty() && own != item.embedding_space) {
    return absl::InvalidArgumentError(absl::StrCat("embedding_space: the embedding is of \"", item.embedding_space,
                                                   "\", model ", loaded_->name, " version ", loaded_->version,
                                                   " takes embeddings of \"", own, "\""));
  }
  return loaded_->quantiser->Encode(item.embedding);
}

std::shared_ptr<const glass::Catalogue> GenerativeModel::CatalogueOf(const std::string& ns,
                                                                     const Catalog& catalog) const {
  const auto find = [&]() -> std::shared_ptr<const glass::Catalogue> {
    std::lock_guard lock(mutex_);
    const auto found = catalogues_.find(ns);
    return found == catalogues_.end() ? nullptr : found->second;
  };
  if (auto found = find()) return found;
  // Items stored from here on reach Add, which waits for this mutex.
  std::lock_guard change(change_mutex_);
  if (auto found = find()) return found;
  if (catalog.Size(ns) == 0) return loaded_->catalogue;  // a name in a request must not be kept
  std::vector<Item> embedded;
  catalog.ForEach(ns, [&](const Item& item) {
    if (!item.embedding.empty()) embedded.push_back(item);
    return true;
  });
  std::shared_ptr<const glass::Catalogue> made = With(*loaded_->catalogue, embedded);
  if (made == nullptr) made = loaded_->catalogue;
  std::lock_guard lock(mutex_);
  return catalogues_[ns] = std::move(made);
}

void GenerativeModel::Add(const std::string& ns, std::span<const Item> items) const {
  if (std::none_of(items.begin(), items.end(), [](const Item& item) { return !item.embedding.empty(); })) return;
  std::lock_guard change(change_mutex_);
  std::shared_ptr<const glass::Catalogue> base;
  {
    std::lock_guard lock(mutex_);
    const auto found = catalogues_.find(ns);
    if (found == catalogues_.end()) return;  // the first call of CatalogueOf will read them
    base = found->second;
  }
  std::shared_ptr<const glass::Catalogue> made = With(*base, items);
  if (made == nullptr) return;
  std::lock_guard lock(mutex_);
  catalogues_[ns] = std::move(made);
}

// nullptr if there is nothing new. Items whose embedding this version cannot encode are not its items.
std::shared_ptr<const glass::Catalogue> GenerativeModel::With(const glass::Catalogue& base,
                                                              std::span<const Item> items) const {
  std::map<uint64_t, const Item*> fresh;  // in id order, so that restarts give the same rows for the same catalog
  for (const Item& item : items) {
    if (!item.embedding.empty() && !base.RowOf(item.item_id).has_value()) fresh[item.item_id] = &item;
  }
  glass::CatalogueAddition more;
  for (const auto& [id, item] : fresh) {
    const auto encoded = Encode(*item);
    if (!encoded.ok()) continue;
    more.item_ids.push_back(id);
    more.sids.push_back(encoded->sid);
    more.tier_bins.insert(more.tier_bins.end(), encoded->tier_bins.begin(), encoded->tier_bins.end());
  }
  if (more.item_ids.empty()) return nullptr;
  auto made = base.With(more);
  return made.ok() ? *std::move(made) : nullptr;
}

}  // namespace backstory
