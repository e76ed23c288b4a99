// Keeps a server's experiments in step with their file: checked, applied whole, the last good configuration kept, in memory
// and on disk. The file is the truth; Apply writes it.
#ifndef BACKSTORY_SERVING_RPC_EXPERIMENT_CONTROL_H_
#define BACKSTORY_SERVING_RPC_EXPERIMENT_CONTROL_H_

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "serving/engine/experiments/assigner.h"
#include "serving/engine/metrics.h"

namespace backstory::rpc {

struct ExperimentControlOptions {
  std::string file;                      // replace it by rename, so that nobody reads half of it
  std::chrono::milliseconds poll{1000};  // how long a change of the file waits at most
  // Told of every configuration that was applied (OK, with its version) or refused (every problem). Any thread.
  std::function<void(const std::string& version, const absl::Status&)> on_change;
};

// Thread-safe. Metrics: backstory_experiment_config_applied_total, _refused_total, _file_refused (1 while the file on disk
// is not what runs).
class ExperimentControl {
 public:
  // Applies <file>.last_good if there is one, then the file. If the file is refused the last good one runs, and the refusal
  // is told; if there is none, INVALID_ARGUMENT with every problem. Then watches the file.
  static absl::StatusOr<std::unique_ptr<ExperimentControl>> Open(ExperimentControlOptions options,
                                                                 std::shared_ptr<ExperimentAssigner> assigner,
                                                                 Metrics* metrics);
  ~ExperimentControl();

  // "line: path: reason" for everything that keeps the text from being applied now.
  std::vector<std::string> Validate(const std::string& text) const;
  // Writes the file, then activates; returns the version. INVALID_ARGUMENT with every problem; ABORTED if another version
  // than `expected_version` (if given) is active; RESOURCE_EXHAUSTED or INTERNAL if the file cannot be written. After an
  // error nothing has changed.
  absl::StatusOr<std::string> Apply(const std::string& text, const std::string& expected_version);
  // Looks at the file now. Returns what became of a change; OK if there is none.
  absl::Status Poll();

  const ExperimentAssigner& assigner() const { return *assigner_; }
  std::string active_text() const;

 private:
  ExperimentControl(ExperimentControlOptions options, std::shared_ptr<ExperimentAssigner> assigner, Metrics* metrics);
  absl::Status ApplyText(const std::string& text, const std::string& source, const std::string& expected_version);
  void Watch();

  const ExperimentControlOptions options_;
  const std::shared_ptr<ExperimentAssigner> assigner_;
  Counter* const applied_;
  Counter* const refused_;
  Gauge* const file_refused_;

  std::mutex change_mutex_;  // one change at a time; taken before mutex_
  std::string seen_;         // text of the file when it was last looked at; guarded by change_mutex_
  mutable std::mutex mutex_;
  std::condition_variable stop_;
  std::string active_text_;  // guarded by mutex_
  bool stopping_ = false;    // guarded by mutex_
  std::thread watcher_;      // last: it uses everything above
};

}  // namespace backstory::rpc

#endif  // BACKSTORY_SERVING_RPC_EXPERIMENT_CONTROL_H_
