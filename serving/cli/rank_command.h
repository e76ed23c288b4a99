// `backstory rank`: rank candidates for a user.
#ifndef BACKSTORY_SERVING_CLI_RANK_COMMAND_H_
#define BACKSTORY_SERVING_CLI_RANK_COMMAND_H_

namespace CLI {
class App;
}

namespace backstory {

void AddRankCommand(CLI::App& app);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_RANK_COMMAND_H_
