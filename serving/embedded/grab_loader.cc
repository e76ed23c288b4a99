#include "serving/embedded/grab_loader.h"

#include <memory>
#include <string_view>
#include <utility>

#include "kernels/dtype.h"
#include "models/grab/loader.h"

namespace backstory {
namespace {

ServedCalibration ServedOf(std::shared_ptr<const Calibration> calibration) {
  const uint32_t number = calibration->version();
  return {number, [calibration = std::move(calibration)](std::string_view scene, int task, float logit) {
            return calibration->Probability(scene, task, logit);
          }};
}

}  // namespace

ModelLoader GrabLoader(ThreadPool* pool, const ParameterSet& launch, std::shared_ptr<const ScoringDevice> device) {
  const Dtype precision = launch.Text("precision") == "bf16" ? Dtype::kBf16 : Dtype::kF32;
  return [pool, precision,
          device = std::move(device)](const ModelSource& source) -> absl::StatusOr<std::shared_ptr<const ServedModel>> {
    auto loaded = grab::LoadGrabVersion(source.path, {.pool = pool,
                                                      .expected_name = source.model,
                                                      .precision = precision,
                                                      .serve_with = device ? device->Factory() : grab::ModelFactory()});
    if (!loaded.ok()) return loaded.status();
    auto served = std::make_shared<ServedModel>();
    served->name = source.model;
    served->version = source.version;
    served->content_hash = (*loaded)->hash;
    served->model = std::shared_ptr<const grab::Model>(*loaded, (*loaded)->model.get());
    served->calibration = ServedOf((*loaded)->calibration());
    served->read_calibration = [path = source.path,
                                tasks = (*loaded)->config.tasks](uint32_t number) -> absl::StatusOr<ServedCalibration> {
      auto calibration = grab::ReadCalibration(path, number, tasks);
      if (!calibration.ok()) return calibration.status();
      return ServedOf(*std::move(calibration));
    };
    return std::shared_ptr<const ServedModel>(std::move(served));
  };
}

}  // namespace backstory
