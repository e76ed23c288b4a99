// `backstory bench recommend`: open-loop load of Recommend calls on a running server.
#ifndef BACKSTORY_SERVING_CLI_BENCH_RECOMMEND_H_
#define BACKSTORY_SERVING_CLI_BENCH_RECOMMEND_H_

namespace CLI {
class App;
}

namespace backstory {

void AddBenchRecommend(CLI::App* bench);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_BENCH_RECOMMEND_H_
