// backstory recommend: the items most likely next for a user, with titles.
#ifndef BACKSTORY_SERVING_CLI_RECOMMEND_COMMAND_H_
#define BACKSTORY_SERVING_CLI_RECOMMEND_COMMAND_H_

namespace CLI {
class App;
}

namespace backstory {

void AddRecommendCommand(CLI::App& app);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_RECOMMEND_COMMAND_H_
