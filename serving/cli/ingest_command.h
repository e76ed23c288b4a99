// `backstory ingest`: anybody's event and item files -> a store.
#ifndef BACKSTORY_SERVING_CLI_INGEST_COMMAND_H_
#define BACKSTORY_SERVING_CLI_INGEST_COMMAND_H_

namespace CLI {
class App;
}

namespace backstory {

void AddIngestCommand(CLI::App& app);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_INGEST_COMMAND_H_
