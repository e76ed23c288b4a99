// `backstory evaluate`: how good is a served model on real, held-out events? Every event is ranked as of its own time.
#ifndef BACKSTORY_SERVING_CLI_EVALUATE_COMMAND_H_
#define BACKSTORY_SERVING_CLI_EVALUATE_COMMAND_H_

#include "CLI/CLI.hpp"

namespace backstory {

void AddEvaluateCommand(CLI::App& app);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_EVALUATE_COMMAND_H_
