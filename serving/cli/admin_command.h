// `backstory admin`: models and checkpoints of a running server.
#ifndef BACKSTORY_SERVING_CLI_ADMIN_COMMAND_H_
#define BACKSTORY_SERVING_CLI_ADMIN_COMMAND_H_

namespace CLI {
class App;
}

namespace backstory {

void AddAdminCommand(CLI::App& app);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_ADMIN_COMMAND_H_
