// `backstory store verify | repair | export | import | stats | compact | checkpoint | delete-user`: care of a store on
// disk.
#ifndef BACKSTORY_SERVING_CLI_STORE_COMMAND_H_
#define BACKSTORY_SERVING_CLI_STORE_COMMAND_H_

namespace CLI {
class App;
}

namespace backstory {

void AddStoreCommand(CLI::App& app);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_STORE_COMMAND_H_
