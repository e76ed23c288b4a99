// Versions of models on disk and in memory: <root>/<model>/<version>/, immutable, complete once their MANIFEST exists.
// Nothing polls: versions are found when the server starts and when an operator names one.
#ifndef BACKSTORY_SERVING_ENGINE_MODEL_REPOSITORY_H_
#define BACKSTORY_SERVING_ENGINE_MODEL_REPOSITORY_H_

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "serving/engine/metrics.h"
#include "serving/engine/served_model.h"

namespace backstory {

enum class VersionState { kUnloaded, kLoading, kWarming, kReady, kFailed };
std::string_view VersionStateName(VersionState state);  // "UNLOADED", ...

struct VersionInfo {
  std::string model, version;
  VersionState state = VersionState::kUnloaded;
  std::string reason;               // why it FAILED
  std::vector<std::string> labels;  // sorted
  std::string state_id;             // empty unless READY
  uint64_t parameter_bytes = 0;
  std::vector<std::string> tasks;  // empty: generative
  std::string content_hash;
  uint32_t calibration = 0;  // in force; 0 = none
};

// Which version a request asks for: an exact version, or else a label, or else "stable". An empty model means the
// repository's default one of the kind that the request needs.
struct ModelChoice {
  std::string model, version, label;
};

struct RepositoryOptions {
  std::string root;           // empty: no directory, versions come from Load of the loader alone (tests)
  std::string default_model;  // empty: the only model of the wanted kind, if there is exactly one
  bool keep_choices =
      true;  // false: labels and calibrations chosen here are not written to `root` (tools that read it)
  std::function<bool()> stop_loading;  // asked before each version that LoadAtStart loads; none: never
};

// Thread-safe. A request pins the version it got by holding the pointer; unloading drops the repository's reference
// only.
class ModelRepository {
 public:
  // Scores recorded requests with a version that is not ready yet; an error or a non-finite score fails the load.
  using WarmUp = std::function<absl::Status(const std::shared_ptr<const ServedModel>&)>;
  // Called after a version left the repository, so that state which only it could use is dropped.
  using OnUnload = std::function<void(const ServedModel&)>;

  ModelRepository(RepositoryOptions options, ModelLoader loader, WarmUp warm_up, OnUnload on_unload, Metrics* metrics);

  // Finds the versions on disk. For each model loads those its LABELS file names, or the newest version and labels it
  // "stable". A version that fails is FAILED with its reason and the rest goes on; the first failure is returned only
  // if some model ends without a "stable" version. CANCELLED if told to stop.
  absl::Status LoadAtStart();

  // READY when it returns OK. Loading a READY version does nothing. On failure what served before keeps serving.
  // INVALID_ARGUMENT (names), NOT_FOUND (no such directory or no MANIFEST), ABORTED (already being loaded), or what the
  // loader or the warm-up found.
  absl::Status Load(const std::string& model, const std::string& version);
  // FAILED_PRECONDITION while a label points at it or it is being loaded; NOT_FOUND if unknown.
  absl::Status Unload(const std::string& model, const std::string& version);
  // Moves a label at once, to a READY version only (else FAILED_PRECONDITION). Returns the previous version, "" if new.
  // With a root, the labels are kept in <root>/<model>/LABELS (written aside and renamed) and survive a restart.
  absl::StatusOr<std::string> SetLabel(const std::string& model, const std::string& label, const std::string& version);

  // Puts calibration `number` of a READY version in force for requests that start from now on; those in flight keep the
  // one they began with. Returns the previous number. With a root, the choice is kept in <root>/<model>/CALIBRATIONS
  // and survives a restart. NOT_FOUND (version, or no such calibration), FAILED_PRECONDITION (not READY, or this kind
  // of version has none), or what reading it found; after an error nothing has changed.
  absl::StatusOr<uint32_t> SetCalibration(const std::string& model, const std::string& version, uint32_t number);

  // NOT_FOUND naming model, version or label; FAILED_PRECONDITION if the version exists but is not READY (says its
  // state), or is of another kind. Without a name: the default model if it is of this kind, else the only model of it.
  absl::StatusOr<std::shared_ptr<const ServedModel>> Resolve(const ModelChoice& choice,
                                                             ModelKind kind = ModelKind::kRanking) const;
  std::vector<VersionInfo> List(std::string_view model = {}) const;
  // Every READY version.
  std::vector<std::shared_ptr<const ServedModel>> Ready() const;

 private:
  absl::StatusOr<uint32_t> SwapCalibration(const std::string& model, const std::string& version, uint32_t number);
  struct Version {
    VersionState state = VersionState::kUnloaded;
    std::string reason;
    std::shared_ptr<const ServedModel> served;
  };
  struct Model {
    std::map<std::string, Version> versions;
    std::map<std::string, std::string> labels;
  };
  absl::Status LoadModelAtStart(const std::string& model);
  absl::StatusOr<std::shared_ptr<const ServedModel>> LoadAndWarm(const ModelSource& source);
  void SetState(const std::string& model, const std::string& version, VersionState state);
  absl::StatusOr<std::shared_ptr<const ServedModel>> Calibrated(std::shared_ptr<const ServedModel> served) const;
  void CountReady();                                               // with mutex_ held
  absl::StatusOr<std::string> DefaultModel(ModelKind kind) const;  // with mutex_ held

  const RepositoryOptions options_;
  const ModelLoader loader_;
  const WarmUp warm_up_;
  const OnUnload on_unload_;
  Metrics* const metrics_;

  std::mutex calibration_mutex_;  // one change of calibrations at a time; taken before mutex_
  mutable std::mutex mutex_;
  std::map<std::string, Model> models_;  // guarded by mutex_
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_MODEL_REPOSITORY_H_
