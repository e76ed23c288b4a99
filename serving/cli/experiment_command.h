// `backstory experiment lint | explain | parameters | simulate | srm | aa | report`: everything about experiments that
// needs no server.
#ifndef BACKSTORY_SERVING_CLI_EXPERIMENT_COMMAND_H_
#define BACKSTORY_SERVING_CLI_EXPERIMENT_COMMAND_H_

namespace CLI {
class App;
}

namespace backstory {

void AddExperimentCommand(CLI::App& app);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_EXPERIMENT_COMMAND_H_
