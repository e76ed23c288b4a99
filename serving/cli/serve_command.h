// `backstory serve`: the server.
#ifndef BACKSTORY_SERVING_CLI_SERVE_COMMAND_H_
#define BACKSTORY_SERVING_CLI_SERVE_COMMAND_H_

namespace CLI {
class App;
}

namespace backstory {

void AddServeCommand(CLI::App& app);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_SERVE_COMMAND_H_
