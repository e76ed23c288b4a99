// `backstory bench rank`: open-loop Poisson load of Rank calls; one rate, or a sweep that finds the knee.
#ifndef BACKSTORY_SERVING_CLI_BENCH_RANK_H_
#define BACKSTORY_SERVING_CLI_BENCH_RANK_H_

namespace CLI {
class App;
}

namespace backstory {

void AddBenchRank(CLI::App* bench);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_BENCH_RANK_H_
