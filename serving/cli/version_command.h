// `backstory version`: what was built.
#ifndef BACKSTORY_SERVING_CLI_VERSION_COMMAND_H_
#define BACKSTORY_SERVING_CLI_VERSION_COMMAND_H_

namespace CLI {
class App;
}

namespace backstory {

void AddVersionCommand(CLI::App& app);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_VERSION_COMMAND_H_
