#include "serving/cli/history_command.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>
#include <optional>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "backstory/v1/history.grpc.pb.h"
#include "fmt/format.h"
#include "serving/cli/client_options.h"
#include "serving/cli/exit_codes.h"

namespace backstory {
namespace {

struct Options {
  ClientOptions client;
  std::string user, ns, alias, kind = "exposure";
  uint64_t newest = 20, item = 0, event_id = 0, exposure_id = 0;
  int64_t time_us = 0;
  uint32_t action = 0;
  float value = 0;
  bool all = false, yes = false;
  std::vector<uint64_t> event_ids;
};

using OptionsPtr = std::shared_ptr<Options>;

// Fills namespace and user, calls, prints the reply as JSON.
template <typename Request, typename Response>
void Call(const Options& options, Request request,
          grpc::Status (v1::History::Stub::*method)(grpc::ClientContext*, const Request&, Response*)) {
  request.set_namespace_(options.ns);
  auto stub = v1::History::NewStub(options.client.Connect());
  auto context = options.client.Context();
  Response response;
  CheckCall((stub.get()->*method)(context.get(), request, &response));
  PrintJson(response);
}

void Append(const Options& options) {
  v1::AppendRequest request;
  request.mutable_user()->set_user(options.user);
  v1::Event* event = request.add_events();
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const int64_t now_us = std::chrono::duration_cast<std::chrono::microseconds>(now).count();
  event->set_kind(options.kind == "action" ? v1::EVENT_KIND_ACTION : v1::EVENT_KIND_EXPOSURE);
  event->set_time_us(options.time_us == 0 ? now_us : options.time_us);
  event->set_event_id(options.event_id == 0 ? static_cast<uint64_t>(now_us) : options.event_id);
  event->set_item_id(options.item);
  event->set_action(options.action);
  event->set_value(options.value);
  event->set_exposure_id(options.exposure_id);
  Call(options, request, &v1::History::Stub::Append);
}

void Delete(const Options& options) {
  if (options.all && !options.yes) FailCommand(kExitUsage, "--all deletes the whole user: add --yes");
  v1::DeleteRequest request;
  request.mutable_user()->set_user(options.user);
  request.set_all(options.all);
  for (uint64_t id : options.event_ids) request.add_event_ids(id);
  Call(options, request, &v1::History::Stub::Delete);
}

CLI::App* AddMethod(CLI::App* parent, const OptionsPtr& options, const std::string& name, const std::string& help,
                    const std::string& example, std::function<void(const Options&)> run) {
  CLI::App* command = parent->add_subcommand(name, help);
  command->footer("Examples:\n  backstory history " + example);
  options->client.AddTo(command);
  command->add_option("--user", options->user, "User id")->required();
  command->add_option("--namespace", options->ns, "Namespace [default]");
  command->callback([options, run = std::move(run)] { run(*options); });
  return command;
}

}  // namespace

void AddHistoryCommand(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* history = app.add_subcommand("history", "Append to, read and erase histories of a running server");
  history->require_subcommand(1);
  CLI::App* get = AddMethod(history, options, "get", "Newest events of a user", "get --user 42 --newest 5",
                            [](const Options& o) {
                              v1::GetHistoryRequest request;
                              request.mutable_user()->set_user(o.user);
                              request.set_newest(o.newest);
                              Call(o, request, &v1::History::Stub::Get);
                            });
  get->add_option("--newest", options->newest, "How many")->capture_default_str();
  AddMethod(history, options, "head", "Where a user's history stands", "head --user 42", [](const Options& o) {
    v1::HeadRequest request;
    request.mutable_user()->set_user(o.user);
    Call(o, request, &v1::History::Stub::Head);
  });
  CLI::App* append = AddMethod(history, options, "append", "Append one event",
                               "append --user 42 --kind action --action 4 --value 5 --item 318", Append);
  append->add_option("--kind", options->kind, "exposure or action")->check(CLI::IsMember({"exposure", "action"}));
  append->add_option("--item", options->item, "Item id")->required();
  append->add_option("--event-id", options->event_id, "Event id [from the clock]");
  append->add_option("--time-us", options->time_us, "Event time, microseconds [now]");
  append->add_option("--action", options->action, "Action type, e.g. 1 click, 4 rating");
  append->add_option("--value", options->value, "Rating, seconds or amount");
  append->add_option("--exposure-id", options->exposure_id, "Event id of the exposure it answers");
  CLI::App* erase = AddMethod(history, options, "delete", "Delete events, or the whole user",
                              "delete --user 42 --event-ids 7,8", Delete);
  erase->add_option("--event-ids", options->event_ids, "Event ids, separated by commas")->delimiter(',');
  erase->add_flag("--all", options->all, "The whole user; leaves a tombstone that refuses replays");
  erase->add_flag("--yes", options->yes, "Really");
  CLI::App* merge = AddMethod(history, options, "merge", "Make --alias another id of --user",
                              "merge --user 42 --alias cookie-9", [](const Options& o) {
                                v1::MergeRequest request;
                                request.mutable_primary()->set_user(o.user);
                                request.mutable_alias()->set_user(o.alias);
                                Call(o, request, &v1::History::Stub::Merge);
                              });
  merge->add_option("--alias", options->alias, "The other id")->required();
  AddMethod(history, options, "prefetch", "Bring a user's state up to date", "prefetch --user 42",
            [](const Options& o) {
              v1::PrefetchRequest request;
              request.mutable_user()->set_user(o.user);
              Call(o, request, &v1::History::Stub::Prefetch);
            });
}

}  // namespace backstory
