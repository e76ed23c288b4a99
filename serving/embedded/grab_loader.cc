#include "serving/embedded/grab_loader.h"

#include <memory>
#include <string>
#include <string_view>

#include "models/grab/loader.h"

namespace backstory {

ModelLoader GrabLoader(ThreadPool* pool) {
  return [pool](const ModelSource& source) -> absl::StatusOr<std::shared_ptr<const ServedModel>> {
    auto loaded = grab::LoadGrabVersion(source.path, {.pool = pool, .expected_name = source.model});
    if (!loaded.ok()) return loaded.status();
    auto served = std::make_shared<ServedModel>();
    served->name = source.model;
    served->version = source.version;
    served->content_hash = (*loaded)->hash;
    const std::shared_ptr<const Calibration> calibration = (*loaded)->calibration();
    served->config_version = "calibration-" + std::to_string(calibration->version());
    served->model = std::shared_ptr<const grab::Model>(*loaded, (*loaded)->model.get());
    served->calibrate = [calibration](std::string_view scene, int task, float logit) {
      return calibration->Probability(scene, task, logit);
    };
    return std::shared_ptr<const ServedModel>(std::move(served));
  };
}

}  // namespace backstory
