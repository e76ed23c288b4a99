// `backstory bench`: load on a running server, and kernels and models in process.
#ifndef BACKSTORY_SERVING_CLI_BENCH_COMMAND_H_
#define BACKSTORY_SERVING_CLI_BENCH_COMMAND_H_

namespace CLI {
class App;
}

namespace backstory {

void AddBenchCommand(CLI::App& app);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_BENCH_COMMAND_H_
