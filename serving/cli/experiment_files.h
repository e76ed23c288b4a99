// What the experiment commands read: configurations with all their problems, keys, features.
#ifndef BACKSTORY_SERVING_CLI_EXPERIMENT_FILES_H_
#define BACKSTORY_SERVING_CLI_EXPERIMENT_FILES_H_

#include <memory>
#include <string>
#include <vector>

#include "features/tokenizer.h"
#include "serving/engine/experiments/log_reader.h"
#include "serving/engine/experiments/plan.h"

namespace backstory {

// "file:line: path: reason" for everything wrong with the file, by itself and as the successor of `active` (may be empty).
// Ends the command if a file cannot be read.
std::vector<std::string> ExperimentProblems(const std::string& file, const std::string& active);
// Ends the command with exit code 3 after printing every problem.
std::shared_ptr<const ExperimentPlan> LoadExperimentPlan(const std::string& file);
// The experiment of that name; ends the command with exit code 2 if there is none.
const ExperimentSpec& FindExperiment(const ExperimentPlan& plan, const std::string& name);

// First line of a file, or "" if the path is empty.
std::string ReadKeyFile(const std::string& path);
// "country=de", "age=41": a number if it reads as one. Ends the command with exit code 2 otherwise.
FeatureMap ParseFeatures(const std::vector<std::string>& texts);
// Bad, torn and dropped lines, to standard error.
void PrintReadReport(const std::string& what, const ReadReport& report);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_EXPERIMENT_FILES_H_
