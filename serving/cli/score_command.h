// backstory score: offline scoring of CSV and JSON lines.
#ifndef BACKSTORY_SERVING_CLI_SCORE_COMMAND_H_
#define BACKSTORY_SERVING_CLI_SCORE_COMMAND_H_

#include "CLI/CLI.hpp"

namespace backstory {

void AddScoreCommand(CLI::App& app);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_SCORE_COMMAND_H_
