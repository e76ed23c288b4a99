// `backstory bench append`: how many events a second does AppendStream acknowledge?
#ifndef BACKSTORY_SERVING_CLI_BENCH_APPEND_H_
#define BACKSTORY_SERVING_CLI_BENCH_APPEND_H_

namespace CLI {
class App;
}

namespace backstory {

void AddBenchAppend(CLI::App* bench);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_BENCH_APPEND_H_
