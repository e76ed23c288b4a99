// `backstory bench kernels`: rates of the kernels on one core beside the core's bounds.
#ifndef BACKSTORY_SERVING_CLI_BENCH_KERNELS_H_
#define BACKSTORY_SERVING_CLI_BENCH_KERNELS_H_

namespace CLI {
class App;
}

namespace backstory {

void AddBenchKernels(CLI::App* bench);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_BENCH_KERNELS_H_
