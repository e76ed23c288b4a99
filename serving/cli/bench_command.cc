#include "serving/cli/bench_command.h"

#include <memory>

#include "CLI/CLI.hpp"
#include "serving/cli/bench_append.h"
#include "serving/cli/bench_kernels.h"
#include "serving/cli/bench_model.h"
#include "serving/cli/bench_rank.h"
#include "serving/cli/bench_recommend.h"

namespace backstory {

void AddBenchCommand(CLI::App& app) {
  CLI::App* bench =
      app.add_subcommand("bench", "Load on a running server, or kernels and models of this machine, measured");
  bench->require_subcommand(1);
  AddBenchRank(bench);
  AddBenchRecommend(bench);
  AddBenchAppend(bench);
  AddBenchModel(bench);
  AddBenchKernels(bench);
}

}  // namespace backstory
