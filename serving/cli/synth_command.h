// `backstory synth`: made-up users with long histories, in import format.
#ifndef BACKSTORY_SERVING_CLI_SYNTH_COMMAND_H_
#define BACKSTORY_SERVING_CLI_SYNTH_COMMAND_H_

namespace CLI {
class App;
}

namespace backstory {

void AddSynthCommand(CLI::App& app);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_SYNTH_COMMAND_H_
