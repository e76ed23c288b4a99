// Version directory -> a model that recommends. The one way a GLASS model comes into being outside tests. The files are
// described in proto/backstory/model/v1/glass.proto and docs/reference/model-files.md ("Generative versions").
#ifndef BACKSTORY_MODELS_GLASS_LOADER_H_
#define BACKSTORY_MODELS_GLASS_LOADER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/thread_pool.h"
#include "models/glass/catalogue.h"
#include "models/glass/config.h"
#include "models/glass/golden.h"
#include "models/glass/network.h"
#include "models/glass/quantiser.h"
#include "models/glass/searcher.h"

namespace backstory::glass {

struct LoadOptions {
  ThreadPool* pool = nullptr;  // of goldens and searches, outlives the model; null: the calling thread
  std::string expected_name;   // not empty: the configuration's name must be this (the repository's folder)
  // What the CPU's layers multiply as (network.h).
  Dtype precision = Dtype::kF32;
  // Makes what searches, if set. Whatever is not the CPU in fp32 is loaded after that has met the goldens at full
  // sharpness, and must meet them as one that rounds (golden.h).
  SearcherFactory serve_with;
};

// Immutable once loaded, thread-safe.
struct LoadedGlass {
  std::string name;
  std::string version;  // last component of the path
  std::string hash;     // 16 hex digits, of the MANIFEST
  Config config;
  uint64_t parameter_bytes = 0;
  std::shared_ptr<const Network> network;
  std::shared_ptr<const Searcher> searcher;
  std::shared_ptr<const Catalogue> catalogue;
  std::optional<Quantiser> quantiser;  // always there once loaded
  GoldenReport goldens;                // of what searches
};

// Reads and verifies the files, builds the model, runs the goldens. NOT_FOUND: no directory, or no MANIFEST in it.
// DATA_LOSS: a file that is not what MANIFEST says, a damaged tensor file, a NaN. INVALID_ARGUMENT: whole files with
// wrong content, named by file and field. FAILED_PRECONDITION: sid_version is not that of the SIDs, codebooks and
// prototypes in the files, or a golden case gives something else. Nothing is kept on failure.
absl::StatusOr<std::shared_ptr<const LoadedGlass>> LoadGlassVersion(const std::string& path,
                                                                    const LoadOptions& options = {});

// Checks a directory that lacks only MANIFEST, as loading would, and writes MANIFEST. Errors as above; the directory
// then still has none.
absl::Status SealVersion(const std::string& path, const LoadOptions& options = {});

// Whether a version directory holds a generative model: it has an items.safetensors. Reads no file.
bool IsGlassVersion(const std::string& path);

}  // namespace backstory::glass

#endif  // BACKSTORY_MODELS_GLASS_LOADER_H_
