// Start here to score inside your own process: an engine over a store that is opened read-only and one model version.
// No server, no gRPC. For batch commands and the Python module.
#ifndef BACKSTORY_SERVING_EMBEDDED_EMBEDDED_ENGINE_H_
#define BACKSTORY_SERVING_EMBEDDED_EMBEDDED_ENGINE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "serving/engine/engine.h"

namespace backstory {

struct EmbeddedOptions {
  // Directory of a store that no process has open for writing, best a checkpoint. Nothing in it is changed, so any
  // number of processes may share it.
  std::string store;

  // Model repository, <models>/<model>/<version>/. Only the chosen version is loaded. No model name: the only one
  // there. Neither version nor label: the label "stable", else the newest version.
  std::string models;
  ModelChoice model;

  int threads = 0;                               // that prepare and score; 0: one per core
  size_t cache_bytes = size_t{1} << 30;          // for user states
  size_t block_cache_bytes = size_t{256} << 20;  // for blocks of the store
  // Launch values of any scope (docs/reference/parameters.md). They win over the two above.
  std::map<std::string, std::string> parameters;
};

// Thread-safe, as Engine is.
class EmbeddedEngine {
 public:
  // NOT_FOUND (store, model, version, label), FAILED_PRECONDITION (a writer has the store open; goldens of the version
  // differ), DATA_LOSS (damaged; names the file and the next command), INVALID_ARGUMENT (options: names the parameter).
  static absl::StatusOr<std::unique_ptr<EmbeddedEngine>> Open(const EmbeddedOptions& options);
  virtual ~EmbeddedEngine() = default;

  virtual Engine* engine() = 0;
  // The version that was loaded, by its exact name; give it to BatchOptions::model.
  virtual const ModelChoice& model() const = 0;
  // Of the version's MANIFEST: tells two directories of one name apart.
  virtual const std::string& content_hash() const = 0;
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_EMBEDDED_EMBEDDED_ENGINE_H_
