#include "serving/cli/admin_command.h"

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>

#include "CLI/CLI.hpp"
#include "backstory/v1/admin.grpc.pb.h"
#include "fmt/format.h"
#include "serving/cli/client_options.h"
#include "serving/cli/exit_codes.h"

namespace backstory {
namespace {

struct Options {
  ClientOptions client;
  std::string model, version, label, name, ns;
  uint64_t max_users = 0;
  uint32_t calibration = 0;
  bool at_once = false;
};

using OptionsPtr = std::shared_ptr<Options>;

template <typename Service, typename Request, typename Response>
Response Call(const Options& options, const Request& request,
              grpc::Status (Service::Stub::*method)(grpc::ClientContext*, const Request&, Response*)) {
  auto stub = Service::NewStub(options.client.Connect());
  auto context = options.client.Context();
  Response response;
  CheckCall((stub.get()->*method)(context.get(), request, &response));
  PrintJson(response);
  return response;
}

void Load(const Options& o) {
  v1::LoadModelRequest request;
  request.set_model(o.model);
  request.set_version(o.version);
  Call<v1::Models>(o, request, &v1::Models::Stub::Load);
}

void Unload(const Options& o) {
  v1::UnloadModelRequest request;
  request.set_model(o.model);
  request.set_version(o.version);
  Call<v1::Models>(o, request, &v1::Models::Stub::Unload);
}

void SetLabel(const Options& o) {
  v1::SetLabelRequest request;
  request.set_model(o.model);
  request.set_label(o.label);
  request.set_version(o.version);
  request.set_at_once(o.at_once);
  Call<v1::Models>(o, request, &v1::Models::Stub::SetLabel);
}

void SetCalibration(const Options& o) {
  v1::SetCalibrationRequest request;
  request.set_model(o.model);
  request.set_version(o.version);
  request.set_calibration(o.calibration);
  Call<v1::Models>(o, request, &v1::Models::Stub::SetCalibration);
}

void Verify(const Options& o) {
  v1::VerifyRequest request;
  request.set_namespace_(o.ns);
  request.set_max_users(o.max_users);
  const auto response = Call<v1::Store>(o, request, &v1::Store::Stub::Verify);
  if (response.problems_size() > 0) FailCommand(kExitDamaged, fmt::format("{} problems", response.problems_size()));
}

CLI::App* Add(CLI::App* parent, const OptionsPtr& options, const std::string& name, const std::string& help,
              const std::string& example, std::function<void(const Options&)> run) {
  CLI::App* command = parent->add_subcommand(name, help);
  command->footer("Examples:\n  backstory admin " + example);
  options->client.AddTo(command);
  command->callback([options, run = std::move(run)] { run(*options); });
  return command;
}

}  // namespace

void AddAdminCommand(CLI::App& app) {
  auto options = std::make_shared<Options>();
  options->client.deadline_ms = 600'000;
  CLI::App* admin = app.add_subcommand("admin", "Models and checkpoints of a running server (its admin port)");
  admin->require_subcommand(1);
  CLI::App* list = Add(admin, options, "list", "Model versions and their state", "list --server 127.0.0.1:7071",
                       [](const Options& o) {
                         v1::ListModelsRequest request;
                         request.set_model(o.model);
                         Call<v1::Models>(o, request, &v1::Models::Stub::List);
                       });
  list->add_option("--model", options->model, "Only this model");
  CLI::App* load =
      Add(admin, options, "load", "Load, verify and warm a version", "load --model grab-ml --version-id 2", Load);
  CLI::App* unload =
      Add(admin, options, "unload", "Unload a version without labels", "unload --model grab-ml --version-id 1", Unload);
  CLI::App* label = Add(admin, options, "label", "Move a label to a loaded version, once it is warm",
                        "label --model grab-ml --label stable --version-id 2", SetLabel);
  CLI::App* calibration = Add(admin, options, "calibration", "Put another calibration of a loaded version in force",
                              "calibration --model grab-ml --version-id 1 --calibration 2", SetCalibration);
  for (CLI::App* command : {load, unload, label, calibration}) {
    command->add_option("--model", options->model, "Model")->required();
    command->add_option("--version-id", options->version, "Version")->required();
  }
  label->add_option("--label", options->label, "Label")->required();
  label->add_flag("--at-once", options->at_once,
                  "Do not wait until the version has the states of the label's users: to roll back");
  calibration->add_option("--calibration", options->calibration, "n of calibration/<n>.textproto")->required();
  CLI::App* checkpoint = Add(admin, options, "checkpoint", "A consistent copy of the store",
                             "checkpoint --name before-upgrade", [](const Options& o) {
                               v1::CheckpointRequest request;
                               request.set_name(o.name);
                               Call<v1::Store>(o, request, &v1::Store::Stub::Checkpoint);
                             });
  checkpoint->add_option("--name", options->name, "New directory below the server's --checkpoint-dir")->required();
  CLI::App* verify = Add(admin, options, "verify", "Read histories back and check them, while serving",
                         "verify --namespace movielens", Verify);
  verify->add_option("--namespace", options->ns, "Namespace [default]");
  verify->add_option("--max-users", options->max_users, "How many users to read [1000]");
}

}  // namespace backstory
