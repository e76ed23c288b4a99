// A loaded generative version as the engine uses it: the network, and per namespace the items it can recommend. Those
// are the version's own, and whatever the namespace's catalog has an embedding of: such items get their semantic ID
// from the version's frozen codebooks, without a new version.
#ifndef BACKSTORY_SERVING_ENGINE_RECOMMEND_GENERATIVE_MODEL_H_
#define BACKSTORY_SERVING_ENGINE_RECOMMEND_GENERATIVE_MODEL_H_

#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "features/item.h"
#include "models/glass/loader.h"
#include "store/catalog.h"

namespace backstory {

// Thread-safe.
class GenerativeModel {
 public:
  explicit GenerativeModel(std::shared_ptr<const glass::LoadedGlass> loaded) : loaded_(std::move(loaded)) {}

  const glass::Config& config() const { return loaded_->config; }
  const glass::Searcher& searcher() const { return *loaded_->searcher; }
  const glass::LoadedGlass& loaded() const { return *loaded_; }
  // Names user states: they belong to this version alone, whose rows and weights they are made of.
  std::string state_id() const { return "glass-" + loaded_->hash; }

  // INVALID_ARGUMENT "embedding ..." or "embedding_space ..." if the version cannot encode the item's embedding,
  // FAILED_PRECONDITION if it can encode none.
  absl::StatusOr<glass::Quantiser::Encoded> Encode(const Item& item) const;

  // What can be recommended in a namespace. The first call for one reads its catalog. Rows of items never change, later
  // catalogues only have more of them.
  std::shared_ptr<const glass::Catalogue> CatalogueOf(const std::string& ns, const Catalog& catalog) const;
  // After these items were stored in the catalog: takes in those with an embedding. One that the version knows keeps
  // the semantic ID that it was trained with.
  void Add(const std::string& ns, std::span<const Item> items) const;

 private:
  std::shared_ptr<const glass::Catalogue> With(const glass::Catalogue& base, std::span<const Item> items) const;

  const std::shared_ptr<const glass::LoadedGlass> loaded_;
  mutable std::mutex change_mutex_;  // one change at a time; taken before mutex_
  mutable std::mutex mutex_;
  mutable std::map<std::string, std::shared_ptr<const glass::Catalogue>> catalogues_;  // guarded by mutex_
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_RECOMMEND_GENERATIVE_MODEL_H_
