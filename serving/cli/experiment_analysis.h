// `backstory experiment srm | aa | report`: reads logs of an experiment.
#ifndef BACKSTORY_SERVING_CLI_EXPERIMENT_ANALYSIS_H_
#define BACKSTORY_SERVING_CLI_EXPERIMENT_ANALYSIS_H_

namespace CLI {
class App;
}

namespace backstory {

void AddExperimentAnalysisCommands(CLI::App& group);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_EXPERIMENT_ANALYSIS_H_
