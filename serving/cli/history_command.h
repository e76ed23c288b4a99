// `backstory history`: append to, read and erase histories of a running server.
#ifndef BACKSTORY_SERVING_CLI_HISTORY_COMMAND_H_
#define BACKSTORY_SERVING_CLI_HISTORY_COMMAND_H_

namespace CLI {
class App;
}

namespace backstory {

void AddHistoryCommand(CLI::App& app);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_HISTORY_COMMAND_H_
