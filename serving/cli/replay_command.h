// `backstory replay`: scores recorded requests again, from the store and the model version that answered them.
#ifndef BACKSTORY_SERVING_CLI_REPLAY_COMMAND_H_
#define BACKSTORY_SERVING_CLI_REPLAY_COMMAND_H_

namespace CLI {
class App;
}

namespace backstory {

void AddReplayCommand(CLI::App& app);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_REPLAY_COMMAND_H_
