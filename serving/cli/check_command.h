// `backstory check`: every problem a server would meet, without serving.
#ifndef BACKSTORY_SERVING_CLI_CHECK_COMMAND_H_
#define BACKSTORY_SERVING_CLI_CHECK_COMMAND_H_

namespace CLI {
class App;
}

namespace backstory {

void AddCheckCommand(CLI::App& app);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_CHECK_COMMAND_H_
