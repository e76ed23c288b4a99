// The binary: one subcommand per file, registered here.
#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "serving/cli/admin_command.h"
#include "serving/cli/bench_command.h"
#include "serving/cli/check_command.h"
#include "serving/cli/exit_codes.h"
#include "serving/cli/history_command.h"
#include "serving/cli/rank_command.h"
#include "serving/cli/recommend_command.h"
#include "serving/cli/serve_command.h"
#include "serving/cli/version_command.h"
#include "serving/engine/closest_word.h"
#ifdef BACKSTORY_CLI_EVALUATE
#include "serving/cli/evaluate_command.h"
#endif
#ifdef BACKSTORY_CLI_EXPERIMENT
#include "serving/cli/experiment_command.h"
#endif
#ifdef BACKSTORY_CLI_REPLAY
#include "serving/cli/replay_command.h"
#endif
#ifdef BACKSTORY_CLI_INGEST
#include "serving/cli/ingest_command.h"
#endif
#ifdef BACKSTORY_CLI_MODEL
#include "serving/cli/model_command.h"
#endif
#ifdef BACKSTORY_CLI_SCORE
#include "serving/cli/score_command.h"
#endif
#ifdef BACKSTORY_CLI_STORE
#include "serving/cli/store_command.h"
#endif
#ifdef BACKSTORY_CLI_SYNTH
#include "serving/cli/synth_command.h"
#endif
#ifdef BACKSTORY_CLI_TOKENIZE
#include "serving/cli/tokenize_command.h"
#endif

namespace backstory {
namespace {

constexpr char kFooter[] = R"(Exit codes: 0 ok, 1 failed, 2 usage, 3 configuration invalid, 4 data damaged, 5 unavailable, 130 interrupted.
Data goes to standard output, messages and progress to standard error. `backstory COMMAND --help` shows examples.)";

void AddCommands(CLI::App& app) {
  AddServeCommand(app);
  AddRankCommand(app);
  AddRecommendCommand(app);
  AddHistoryCommand(app);
#ifdef BACKSTORY_CLI_INGEST
  AddIngestCommand(app);
#endif
#ifdef BACKSTORY_CLI_EVALUATE
  AddEvaluateCommand(app);
#endif
#ifdef BACKSTORY_CLI_MODEL
  AddModelCommand(app);
#endif
#ifdef BACKSTORY_CLI_STORE
  AddStoreCommand(app);
#endif
#ifdef BACKSTORY_CLI_SYNTH
  AddSynthCommand(app);
#endif
#ifdef BACKSTORY_CLI_TOKENIZE
  AddTokenizeCommand(app);
#endif
#ifdef BACKSTORY_CLI_EXPERIMENT
  AddExperimentCommand(app);
#endif
#ifdef BACKSTORY_CLI_REPLAY
  AddReplayCommand(app);
#endif
#ifdef BACKSTORY_CLI_SCORE
  AddScoreCommand(app);
#endif
  AddAdminCommand(app);
  AddCheckCommand(app);
  AddBenchCommand(app);
  AddVersionCommand(app);
}

// A word that is no command: says which one was probably meant.
bool Mistyped(const CLI::App& app, int argc, char** argv) {
  if (argc < 2 || argv[1][0] == '-' || argv[1][0] == '\0') return false;
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands(nullptr)) names.push_back(command->get_name());
  if (std::find(names.begin(), names.end(), argv[1]) != names.end()) return false;
  std::cerr << "backstory: there is no command \"" << argv[1] << "\"";
  const std::string_view closest = ClosestWord(argv[1], names);
  if (!closest.empty()) std::cerr << "; did you mean \"" << closest << "\"?";
  std::cerr << "\nRun backstory --help for the list.\n";
  return true;
}

int Run(int argc, char** argv) {
  CLI::App app("Backstory: ranks and recommends from everything a user ever did", "backstory");
  app.footer(kFooter);
  app.require_subcommand(1);
  app.get_formatter()->column_width(34);
  AddCommands(app);
  if (argc < 2) {
    std::cerr << app.help();
    return kExitUsage;
  }
  if (Mistyped(app, argc, argv)) return kExitUsage;
  try {
    app.parse(argc, argv);
  } catch (const CLI::RuntimeError& e) {
    return e.get_exit_code();
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? kExitOk : kExitUsage;
  } catch (const std::exception& e) {
    std::cerr << "backstory: " << e.what() << "\n";
    return kExitFailed;
  }
  return kExitOk;
}

// 130, as documented, for a command that does not handle the interrupt itself; what it wrote so far stays.
extern "C" void OnInterrupt(int) { std::_Exit(kExitInterrupted); }

}  // namespace
}  // namespace backstory

int main(int argc, char** argv) {
  std::signal(SIGINT, backstory::OnInterrupt);
  return backstory::Run(argc, argv);
}
