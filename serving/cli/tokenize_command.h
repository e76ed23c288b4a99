// `backstory tokenize`: histories -> token shards for trainers, by the tokenizer that serves.
#ifndef BACKSTORY_SERVING_CLI_TOKENIZE_COMMAND_H_
#define BACKSTORY_SERVING_CLI_TOKENIZE_COMMAND_H_

namespace CLI {
class App;
}

namespace backstory {

void AddTokenizeCommand(CLI::App& app);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_TOKENIZE_COMMAND_H_
