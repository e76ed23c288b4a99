// The text form of an experiment configuration (proto/backstory/config/v1/experiments.proto) and where in it each problem
// lies. The only place that sees both the schema and the engine's structs.
#ifndef BACKSTORY_SERVING_RPC_EXPERIMENT_CONFIG_TEXT_H_
#define BACKSTORY_SERVING_RPC_EXPERIMENT_CONFIG_TEXT_H_

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "serving/engine/experiments/config.h"
#include "serving/engine/experiments/lint.h"

namespace backstory::rpc {

inline constexpr size_t kExperimentConfigBytesMax = 1 << 20;

struct ExperimentConfigText {
  ExperimentConfig config;  // version = "x" + 16 hex digits over the content: comments and layout do not change it
  std::string source;       // name of the file
  std::map<std::string, int> lines;     // of paths as in ConfigProblem, from 1
  std::vector<ConfigProblem> problems;  // what the struct cannot hold: a setting given twice
};

// INVALID_ARGUMENT with one "source:line:column: reason" a line for everything the text format itself refuses: syntax,
// unknown fields, numbers out of range, enum names, singular fields given twice.
absl::StatusOr<ExperimentConfigText> ParseExperimentConfig(std::string_view text, const std::string& source);

// "source:line: path: reason"; the line of the nearest enclosing thing if the path itself is not in the text.
std::string Located(const ExperimentConfigText& text, const ConfigProblem& problem);

// Parses back to an equal configuration.
std::string FormatExperimentConfig(const ExperimentConfig& config);

}  // namespace backstory::rpc

#endif  // BACKSTORY_SERVING_RPC_EXPERIMENT_CONFIG_TEXT_H_
