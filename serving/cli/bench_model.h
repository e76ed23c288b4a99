// `backstory bench model`: GRAB in process, without store or gRPC: cached scoring, prefill and append beside the bounds
// of the threads used.
#ifndef BACKSTORY_SERVING_CLI_BENCH_MODEL_H_
#define BACKSTORY_SERVING_CLI_BENCH_MODEL_H_

namespace CLI {
class App;
}

namespace backstory {

void AddBenchModel(CLI::App* bench);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_BENCH_MODEL_H_
