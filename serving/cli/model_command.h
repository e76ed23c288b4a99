// `backstory model inspect | verify | seal | calibrate | init-random`: versions of models as files.
#ifndef BACKSTORY_SERVING_CLI_MODEL_COMMAND_H_
#define BACKSTORY_SERVING_CLI_MODEL_COMMAND_H_

namespace CLI {
class App;
}

namespace backstory {

void AddModelCommand(CLI::App& app);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_MODEL_COMMAND_H_
