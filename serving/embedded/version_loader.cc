#include "serving/embedded/version_loader.h"

#include <memory>
#include <utility>

#include "models/glass/loader.h"
#include "serving/embedded/grab_loader.h"
#include "serving/engine/recommend/generative_model.h"

namespace backstory {
namespace {

absl::StatusOr<std::shared_ptr<const ServedModel>> LoadGenerative(const ModelSource& source, ThreadPool* pool,
                                                                  Dtype precision, const ScoringDevice* device) {
  auto loaded =
      glass::LoadGlassVersion(source.path, {.pool = pool,
                                            .expected_name = source.model,
                                            .precision = precision,
                                            .serve_with = device ? device->GlassFactory() : glass::SearcherFactory()});
  if (!loaded.ok()) return loaded.status();
  auto served = std::make_shared<ServedModel>();
  served->name = source.model;
  served->version = source.version;
  served->content_hash = (*loaded)->hash;
  served->generative_bytes = (*loaded)->parameter_bytes;
  auto generative = std::make_shared<const GenerativeModel>(*std::move(loaded));
  served->generative_state_id = generative->state_id();
  served->generative = std::move(generative);
  return std::shared_ptr<const ServedModel>(std::move(served));
}

}  // namespace

ModelLoader VersionLoader(ThreadPool* pool, const ParameterSet& launch, std::shared_ptr<const ScoringDevice> device) {
  const Dtype precision = launch.Text("precision") == "bf16" ? Dtype::kBf16 : Dtype::kF32;
  return [pool, precision, device, grab = GrabLoader(pool, launch, device)](const ModelSource& source) {
    return glass::IsGlassVersion(source.path) ? LoadGenerative(source, pool, precision, device.get()) : grab(source);
  };
}

}  // namespace backstory
