// Handlers: models and store administration.
#include <algorithm>
#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"
#include "serving/rpc/handlers.h"
#include "serving/rpc/wire.h"

namespace backstory::rpc {
namespace {

constexpr uint64_t kVerifyUsersDefault = 1'000;
constexpr uint64_t kVerifyUsersMax = 1'000'000;
constexpr int kProblemsMax = 100;

absl::Status CheckName(std::string_view field, const std::string& name, bool dots) {
  bool good = !name.empty() && name.size() <= kNameBytesMax && name[0] != '.';
  for (char c : name) {
    good = good && ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-' || (dots && c == '.'));
  }
  if (good) return absl::OkStatus();
  return BadField(field,
                  dots ? "must match [a-z0-9_.-]{1,64} and not start with a dot" : "must match [a-z0-9_-]{1,64}");
}

v1::VersionState StateToWire(VersionState state) {
  switch (state) {
    case VersionState::kUnloaded:
      return v1::VERSION_STATE_UNLOADED;
    case VersionState::kLoading:
      return v1::VERSION_STATE_LOADING;
    case VersionState::kWarming:
      return v1::VERSION_STATE_WARMING;
    case VersionState::kReady:
      return v1::VERSION_STATE_READY;
    case VersionState::kFailed:
      return v1::VERSION_STATE_FAILED;
  }
  return v1::VERSION_STATE_UNSPECIFIED;
}

void VersionToWire(const VersionInfo& info, v1::ModelVersion* out) {
  out->set_model(info.model);
  out->set_version(info.version);
  out->set_state(StateToWire(info.state));
  out->set_reason(info.reason);
  for (const auto& label : info.labels) out->add_labels(label);
  out->set_state_id(info.state_id);
  out->set_parameter_bytes(info.parameter_bytes);
  for (const auto& task : info.tasks) out->add_tasks(task);
  out->set_config_hash(info.content_hash);
  out->set_calibration(info.calibration);
}

// What a user's stored history must satisfy, read back through the store.
void VerifyUser(const UserKey& user, const HistoryStore::Snapshot& read, v1::VerifyResponse* out) {
  const auto problem = [&](std::string_view text) {
    if (out->problems_size() < kProblemsMax) {
      out->add_problems(
          absl::StrCat("slot ", SlotOf(user.user), ": a user ", absl::string_view(text.data(), text.size())));
    }
  };
  out->set_events(out->events() + read.events.size());
  for (size_t i = 1; i < read.events.size(); ++i) {
    if (!CanonicalLess(read.events[i - 1], read.events[i])) {
      problem("has events out of canonical order or twice; run: backstory store verify");
      break;
    }
  }
  if (read.events.size() != read.head.events) {
    problem(absl::StrCat("has ", read.events.size(), " events, its head says ", read.head.events,
                         "; run: backstory store verify"));
  }
  if (!read.events.empty() && read.events.back().time_us != read.head.newest_us) {
    problem("has a newest event that its head does not name; run: backstory store verify");
  }
}

}  // namespace

absl::Status Handlers::ListModels(const v1::ListModelsRequest& request, v1::ListModelsResponse* response) const {
  for (const VersionInfo& info : engine_->models().List(request.model())) VersionToWire(info, response->add_versions());
  if (!request.model().empty() && response->versions_size() == 0) {
    return absl::NotFoundError(absl::StrCat("model \"", request.model(), "\" is not known"));
  }
  return absl::OkStatus();
}

absl::Status Handlers::LoadModel(const v1::LoadModelRequest& request, v1::LoadModelResponse* response) const {
  if (auto s = CheckName("model", request.model(), false); !s.ok()) return s;
  if (auto s = CheckName("version", request.version(), true); !s.ok()) return s;
  if (auto s = engine_->models().Load(request.model(), request.version()); !s.ok()) return s;
  for (const VersionInfo& info : engine_->models().List(request.model())) {
    if (info.version == request.version()) VersionToWire(info, response->mutable_version());
  }
  return absl::OkStatus();
}

absl::Status Handlers::UnloadModel(const v1::UnloadModelRequest& request, v1::UnloadModelResponse*) const {
  if (auto s = CheckName("model", request.model(), false); !s.ok()) return s;
  if (auto s = CheckName("version", request.version(), true); !s.ok()) return s;
  return engine_->models().Unload(request.model(), request.version());
}

absl::Status Handlers::SetLabel(const v1::SetLabelRequest& request, v1::SetLabelResponse* response) const {
  if (auto s = CheckName("model", request.model(), false); !s.ok()) return s;
  if (auto s = CheckName("label", request.label(), false); !s.ok()) return s;
  if (auto s = CheckName("version", request.version(), true); !s.ok()) return s;
  auto move = engine_->MoveLabel(request.model(), request.label(), request.version(), request.at_once());
  if (!move.ok()) return move.status();
  response->set_previous_version(move->previous);
  response->set_warm_share(move->warm_share);
  response->set_moved(move->reason);
  return absl::OkStatus();
}

absl::Status Handlers::SetCalibration(const v1::SetCalibrationRequest& request,
                                      v1::SetCalibrationResponse* response) const {
  if (auto s = CheckName("model", request.model(), false); !s.ok()) return s;
  if (auto s = CheckName("version", request.version(), true); !s.ok()) return s;
  if (request.calibration() == 0) return BadField("calibration", "must be >= 1: the n of calibration/<n>.textproto");
  auto previous = engine_->models().SetCalibration(request.model(), request.version(), request.calibration());
  if (!previous.ok()) return previous.status();
  response->set_previous_calibration(*previous);
  return absl::OkStatus();
}

absl::Status Handlers::Checkpoint(const v1::CheckpointRequest& request, v1::CheckpointResponse* response) const {
  if (auto s = CheckName("name", request.name(), true); !s.ok()) return s;
  if (options_.checkpoint_dir.empty()) {
    return absl::FailedPreconditionError("the server has no store.checkpoint_dir to write checkpoints to");
  }
  const std::filesystem::path directory = std::filesystem::path(options_.checkpoint_dir) / request.name();
  std::error_code error;
  if (std::filesystem::exists(directory, error)) {
    return absl::AlreadyExistsError(absl::StrCat("checkpoint \"", request.name(), "\" exists"));
  }
  if (auto s = engine_->store().Checkpoint(directory.string()); !s.ok()) return s;
  response->set_directory(directory.string());
  return absl::OkStatus();
}

absl::Status Handlers::Verify(const v1::VerifyRequest& request, v1::VerifyResponse* response) const {
  auto ns = NamespaceFromWire(request.namespace_());
  if (!ns.ok()) return ns.status();
  if (request.max_users() > kVerifyUsersMax) {
    return BadField("max_users", absl::StrCat("must be <= ", kVerifyUsersMax, ", is ", request.max_users()));
  }
  const uint64_t max_users = request.max_users() == 0 ? kVerifyUsersDefault : request.max_users();
  std::vector<UserKey> users;
  bool complete = true;
  auto visited = engine_->store().ForEachUser(*ns, [&](const UserKey& user, const UserHead&) {
    if (users.size() >= max_users) return complete = false;
    users.push_back(user);
    return true;
  });
  if (!visited.ok()) return visited;
  for (const UserKey& user : users) {
    auto read = engine_->store().Read(user, HistoryRange());
    if (!read.ok()) return read.status();
    VerifyUser(user, *read, response);
  }
  response->set_users(users.size());
  response->set_complete(complete);
  return absl::OkStatus();
}

}  // namespace backstory::rpc
