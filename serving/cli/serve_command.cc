#include "serving/cli/serve_command.h"

#include <pthread.h>

#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "serving/cli/config_flags.h"
#include "serving/cli/exit_codes.h"
#include "serving/cli/serving_stack.h"
#include "serving/rpc/build_info.h"
#include "serving/rpc/log.h"
#include "serving/rpc/server.h"

namespace backstory {
namespace {

struct Options {
  ConfigFlags flags;
  std::string port_file;
  bool print_config = false;
};

constexpr char kExamples[] = R"(Examples:
  backstory serve --store /data/store --models models/zoo
  backstory serve --config server.textproto --port 0 --port-file /run/backstory.port
  backstory serve --store s --models m --tls-cert cert.pem --tls-key key.pem --admin-roles roles.txt
Standard output says "ready" with the ports once requests are answered. SIGTERM drains and exits 0.)";

// Blocks the signals that end the server in this thread and those it starts, so that sigwait gets them.
sigset_t BlockSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGHUP);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  return set;
}

// Complete when it appears: whoever waits for the file never reads half a port.
void WritePortFile(const std::string& path, const rpc::Server& server) {
  const std::string aside = path + ".new";
  {
    std::ofstream file(aside);
    file << server.port() << "\n" << server.admin_port() << "\n" << server.metrics_port() << "\n";
  }
  std::error_code error;
  std::filesystem::rename(aside, path, error);
  if (error) FailCommand(kExitFailed, absl::StrCat("cannot write --port-file ", path, ": ", error.message()));
}

// SIGHUP is ignored: nothing here is read again on a signal. A second SIGINT or SIGTERM during the drain ends at once.
int WaitForEnd(const sigset_t& signals) {
  while (true) {
    int signal = 0;
    sigwait(&signals, &signal);
    if (signal != SIGHUP) return signal;
  }
}

// Whether a signal that ends the server has come, and waits.
bool EndIsPending() {
  sigset_t pending;
  sigemptyset(&pending);
  sigpending(&pending);
  return sigismember(&pending, SIGTERM) == 1 || sigismember(&pending, SIGINT) == 1;
}

rpc::ServerConfig Configuration(const Options& options) {
  rpc::ServerConfig config;
  if (auto s = options.flags.Build(&config); !s.ok()) FailCommand(kExitConfig, std::string(s.message()));
  const auto problems = rpc::ConfigProblems(config);
  for (const std::string& problem : problems) std::cerr << "backstory: " << problem << "\n";
  if (!problems.empty()) FailCommand(kExitConfig, absl::StrCat(problems.size(), " problems in the configuration"));
  return config;
}

void LogVersions(const ModelRepository& models, rpc::Log* log) {
  for (const VersionInfo& info : models.List()) {
    const bool failed = info.state == VersionState::kFailed;
    log->Write(failed ? rpc::LogLevel::kError : rpc::LogLevel::kInfo, "model version",
               {{"model", info.model},
                {"version", info.version},
                {"state", std::string(VersionStateName(info.state))},
                {"reason", info.reason}});
  }
}

// A version that fails to load is FAILED and the rest goes on; a model that ends without a "stable" version stops the
// start: an operator should see that at once and not as NOT_FOUND of every request.
void Serve(const Options& options) {
  const rpc::ServerConfig config = Configuration(options);
  if (options.print_config) {
    std::cout << rpc::ConfigText(config);
    return;
  }
  const sigset_t signals = BlockSignals();
  const int64_t start_us = SystemClock()->MonotonicMicros();
  auto log = rpc::Log::Open({config.log().level(), config.log().file(), config.log().user_hash_key()});
  CheckOk(log.status());
  (*log)->Write(rpc::LogLevel::kInfo, "starting",
                {{"version", std::string(kBuildVersion)}, {"store", config.store().directory()}});
  auto stack = ServingStack::Open(config, {nullptr, nullptr, log->get(), true, EndIsPending});
  CheckOk(stack.status(), "store " + config.store().directory());
  auto server = rpc::Server::Start(config, (*stack)->engine.get(), SystemClock(), &(*stack)->metrics, log->get(),
                                   (*stack)->experiments.control.get(), (*stack)->experiments.exposures.get());
  CheckOk(server.status());
  const absl::Status loaded = (*stack)->engine->LoadModels();
  LogVersions((*stack)->engine->models(), log->get());
  if (EndIsPending()) {
    (*log)->Write(rpc::LogLevel::kInfo, "stopped while loading models", {});
    WaitForEnd(signals);  // takes it, before it is let through
    pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
    CheckOk((*server)->Drain(), "drain");
    return;
  }
  CheckOk(loaded, "models " + config.models().directory());
  (*server)->SetServing(true);
  const double seconds = 1e-6 * static_cast<double>(SystemClock()->MonotonicMicros() - start_us);
  (*log)->Write(rpc::LogLevel::kInfo, "ready",
                {{"port", int64_t{(*server)->port()}},
                 {"admin_port", int64_t{(*server)->admin_port()}},
                 {"metrics_port", int64_t{(*server)->metrics_port()}},
                 {"seconds", seconds}});
  std::cout << "ready: port " << (*server)->port() << ", admin port " << (*server)->admin_port() << ", metrics port "
            << (*server)->metrics_port() << std::endl;
  if (!options.port_file.empty()) WritePortFile(options.port_file, **server);

  WaitForEnd(signals);
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);  // a second signal ends the process at once
  CheckOk((*server)->Drain(), "drain");
}

}  // namespace

void AddServeCommand(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("serve", "Serve rankings and histories over gRPC");
  command->footer(kExamples);
  options->flags.AddTo(command);
  command->add_option("--port-file", options->port_file,
                      "Write data, admin and metrics port here when ready, one a line");
  command->add_flag("--print-config", options->print_config, "Print the effective configuration and exit");
  command->callback([options] { Serve(*options); });
}

}  // namespace backstory
