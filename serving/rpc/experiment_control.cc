#include "serving/rpc/experiment_control.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "serving/rpc/experiment_config_text.h"

namespace backstory::rpc {
namespace {

constexpr char kLastGood[] = ".last_good";

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// A name in a directory survives a power loss only once the directory is synced.
bool SyncDirectoryOf(const std::string& path) {
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  const int fd = open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return false;
  const bool good = fsync(fd) == 0;
  const int error = errno;
  close(fd);
  errno = error;
  return good;
}

// Written aside, synced, renamed, the name synced: whoever reads `path` sees the old or the new text, and what was
// acknowledged (a kill switch, say) holds after a power loss.
absl::Status WriteText(const std::string& path, const std::string& text) {
  const std::string aside = path + ".new";
  const int fd = open(aside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  bool good = fd >= 0;
  for (size_t done = 0; good && done < text.size();) {
    const ssize_t written = write(fd, text.data() + done, text.size() - done);
    if (written < 0 && errno == EINTR) continue;
    good = written >= 0;
    done += good ? static_cast<size_t>(written) : 0;
  }
  good = good && fsync(fd) == 0 && std::rename(aside.c_str(), path.c_str()) == 0 && SyncDirectoryOf(path);
  const int error = errno;
  if (fd >= 0) close(fd);
  if (good) return absl::OkStatus();
  const std::string message = absl::StrCat("cannot write ", path, ": ", std::strerror(error));
  return error == ENOSPC || error == EDQUOT ? absl::ResourceExhaustedError(message) : absl::InternalError(message);
}

struct Checked {
  ExperimentConfigText text;
  std::vector<std::string> problems;
};

Checked Check(const std::string& text, const std::string& source, const ExperimentAssigner& assigner) {
  Checked checked;
  auto parsed = ParseExperimentConfig(text, source);
  if (!parsed.ok()) {
    checked.problems.emplace_back(parsed.status().message());
    return checked;
  }
  checked.text = *std::move(parsed);
  std::vector<ConfigProblem> problems = checked.text.problems;
  for (ConfigProblem& problem : assigner.Validate(checked.text.config)) problems.push_back(std::move(problem));
  for (const ConfigProblem& problem : problems) checked.problems.push_back(Located(checked.text, problem));
  return checked;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ExperimentControl>> ExperimentControl::Open(ExperimentControlOptions options,
                                                                           std::shared_ptr<ExperimentAssigner> assigner,
                                                                           Metrics* metrics) {
  std::unique_ptr<ExperimentControl> control(new ExperimentControl(std::move(options), std::move(assigner), metrics));
  const std::string last_good = control->options_.file + kLastGood;
  if (const auto text = ReadText(last_good); text.ok()) {
    if (const absl::Status s = control->ApplyText(*text, last_good, ""); !s.ok() && control->options_.on_change) {
      control->options_.on_change("", s);  // of another release, or edited: the file alone decides then
    }
  }
  const absl::Status status = control->Poll();
  if (!status.ok() && control->assigner_->plan() == nullptr) return status;
  control->watcher_ = std::thread([raw = control.get()] { raw->Watch(); });
  return control;
}

ExperimentControl::ExperimentControl(ExperimentControlOptions options, std::shared_ptr<ExperimentAssigner> assigner,
                                     Metrics* metrics)
    : options_(std::move(options)),
      assigner_(std::move(assigner)),
      applied_(metrics->GetCounter("backstory_experiment_config_applied_total", "Experiment configurations applied")),
      refused_(metrics->GetCounter("backstory_experiment_config_refused_total", "Experiment configurations refused")),
      file_refused_(metrics->GetGauge("backstory_experiment_config_file_refused",
                                      "1 while the experiment file is refused and the last good one runs")) {}

ExperimentControl::~ExperimentControl() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_all();
  if (watcher_.joinable()) watcher_.join();
}

std::vector<std::string> ExperimentControl::Validate(const std::string& text) const {
  return Check(text, "config_text", *assigner_).problems;
}

absl::StatusOr<std::string> ExperimentControl::Apply(const std::string& text, const std::string& expected_version) {
  const std::lock_guard<std::mutex> lock(change_mutex_);
  const auto active = assigner_->plan();
  if (!expected_version.empty() && (active == nullptr || active->config().version != expected_version)) {
    return absl::AbortedError(absl::StrCat("expected_config_version ", expected_version, " is not active, ",
                                           active == nullptr ? "none" : active->config().version, " is"));
  }
  const Checked checked = Check(text, "config_text", *assigner_);
  if (!checked.problems.empty()) {
    refused_->Add();
    return absl::InvalidArgumentError(absl::StrJoin(checked.problems, "\n"));
  }
  // The file first: after a restart it decides.
  if (const absl::Status status = WriteText(options_.file, text); !status.ok()) return status;
  seen_ = text;
  if (const absl::Status status = ApplyText(text, "config_text", expected_version); !status.ok()) return status;
  file_refused_->Set(0);
  return checked.text.config.version;
}

absl::Status ExperimentControl::Poll() {
  const std::lock_guard<std::mutex> lock(change_mutex_);
  auto text = ReadText(options_.file);
  if (text.ok() && *text == seen_) return absl::OkStatus();
  // An absent file is told once, too.
  if (!text.ok() && seen_ == text.status().message()) return absl::OkStatus();
  seen_ = text.ok() ? *text : std::string(text.status().message());
  const absl::Status status = text.ok() ? ApplyText(*text, options_.file, "") : text.status();
  file_refused_->Set(status.ok() ? 0 : 1);
  return status;
}

absl::Status ExperimentControl::ApplyText(const std::string& text, const std::string& source,
                                          const std::string& expected_version) {
  Checked checked = Check(text, source, *assigner_);
  const std::string version = checked.text.config.version;
  absl::Status status = checked.problems.empty() ? assigner_->Apply(std::move(checked.text.config), expected_version)
                                                 : absl::InvalidArgumentError(absl::StrJoin(checked.problems, "\n"));
  (status.ok() ? applied_ : refused_)->Add();
  if (status.ok()) {
    const std::lock_guard<std::mutex> lock(mutex_);
    active_text_ = text;
  }
  // Only a convenience for the next start: what runs is right without it.
  if (status.ok() && source != options_.file + kLastGood) {
    if (const absl::Status s = WriteText(options_.file + kLastGood, text); !s.ok() && options_.on_change) {
      options_.on_change(version, s);
    }
  }
  if (options_.on_change) options_.on_change(version, status);
  return status;
}

std::string ExperimentControl::active_text() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return active_text_;
}

void ExperimentControl::Watch() {
  while (true) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      if (stop_.wait_for(lock, options_.poll, [this] { return stopping_; })) return;
    }
    Poll().IgnoreError();  // told through on_change and the metrics
  }
}

}  // namespace backstory::rpc
