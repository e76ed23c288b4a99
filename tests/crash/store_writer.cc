#include "tests/crash/store_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "store/rocksdb_history_store.h"
#include "tests/crash/script.h"

namespace backstory {
namespace {

int Fill(const std::string& directory, bool killed) {
  StoreOptions options;
  options.directory = directory;
  absl::StatusOr<Store> store = OpenStore(options);
  if (!store.ok()) return 1;
  std::vector<Item> items(kFillItems);
  for (uint64_t i = 0; i < kFillItems; ++i) {
    items[i].item_id = i + 1;
    items[i].title = "title";
  }
  if (!store->catalog->Upsert("shop", items).ok()) return 1;
  for (int part = 0; part < kFillParts; ++part) {
    for (int user = 0; user < kFillUsers; ++user) {
      if (!store->history->Append(FillUser(user), FillBatch(user, part), kFillNow, Durability::kSynced).ok()) return 1;
    }
    if (part == 1 && !store->history->Compact().ok()) return 1;
  }
  if (killed) kill(getpid(), SIGKILL);
  return 0;
}

// Each thread is one user's client: it sends its batches in order and goes on where the oracle says it stopped.
int Append(const std::string& directory, const std::string& oracle, uint64_t seed) {
  std::mt19937_64 random(seed);
  StoreOptions options;
  options.directory = directory;
  // Small buffers: flushes, compactions and records happen all the time.
  options.write_buffer_bytes = size_t{64 << 10} << random() % 4;
  options.writer_cache_bytes = random() % 2 == 0 ? 1 << 20 : 20 << 10;
  absl::StatusOr<std::unique_ptr<HistoryStore>> store = OpenHistoryStore(options);
  if (!store.ok()) {
    std::fprintf(stderr, "%s\n", store.status().ToString().c_str());
    return 1;
  }
  const int fd = open(oracle.c_str(), O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
  std::vector<uint64_t> next(kAppendThreads, 0);
  if (FILE* known = std::fopen(oracle.c_str(), "r")) {
    char mark;
    int user;
    unsigned long long n;
    while (std::fscanf(known, " %c %d %llu", &mark, &user, &n) == 3) {
      if (mark == 'C') next[static_cast<size_t>(user)] = n + 1;  // a pending batch is sent again: at least once
    }
    std::fclose(known);
  }
  const auto note = [fd](char mark, int user, uint64_t n) {
    char line[64];
    const int size = std::snprintf(line, sizeof(line), "%c %d %llu\n", mark, user, static_cast<unsigned long long>(n));
    if (write(fd, line, static_cast<size_t>(size)) != size) _exit(2);
  };
  std::vector<std::thread> threads;
  for (int user = 0; user < kAppendThreads; ++user) {
    threads.emplace_back([&, user] {
      for (uint64_t n = next[static_cast<size_t>(user)];; ++n) {
        note('P', user, n);
        const Durability durability = n % 3 == 0 ? Durability::kBuffered : Durability::kSynced;
        const auto done = (*store)->Append(FillUser(user), AppendBatch(user, n), kFillNow, durability);
        if (!done.ok()) _exit(3);
        note('C', user, n);
      }
    });
  }
  std::thread compactor([&] {
    while (random() % 1000 != 999) {
      if (!(*store)->Compact().ok()) _exit(4);
    }
  });
  compactor.join();
  for (std::thread& thread : threads) thread.join();
  return 0;
}

int Script(const std::string& directory, const std::string& oracle, const std::string& stream_path) {
  std::ifstream stream_file(stream_path, std::ios::binary);
  const std::string stream{std::istreambuf_iterator<char>(stream_file), std::istreambuf_iterator<char>()};
  uint64_t first = 0;
  {
    std::ifstream known(oracle);
    char mark;
    uint64_t n;
    while (known >> mark >> n) {
      if (mark == 'C') first = n + 1;
    }
  }
  StoreOptions options;
  options.directory = directory;
  options.write_buffer_bytes = 64 << 10;
  absl::StatusOr<std::unique_ptr<HistoryStore>> store = OpenHistoryStore(options);
  if (!store.ok()) {
    std::fprintf(stderr, "%s\n", store.status().ToString().c_str());
    return 1;
  }
  const int fd = open(oracle.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
  const auto note = [fd](char mark, uint64_t n) {
    const std::string line = std::string(1, mark) + " " + std::to_string(n) + "\n";
    return write(fd, line.data(), line.size()) == static_cast<ssize_t>(line.size());
  };
  for (uint64_t n = first; n < first + 2 * kScriptPeriod; ++n) {
    if (!note('P', n)) return 2;
    if (absl::Status done = DoOperation(n, directory, stream, store->get()); !done.ok()) {
      std::fprintf(stderr, "operation %llu: %s\n", static_cast<unsigned long long>(n), done.ToString().c_str());
      return 3;
    }
    if (!note('C', n)) return 2;
  }
  return 0;
}

}  // namespace
}  // namespace backstory

int main(int argc, char** argv) {
  if (argc == 4 && std::strcmp(argv[1], "fill") == 0)
    return backstory::Fill(argv[2], std::strcmp(argv[3], "killed") == 0);
  if (argc == 5 && std::strcmp(argv[1], "append") == 0) {
    return backstory::Append(argv[2], argv[3], std::strtoull(argv[4], nullptr, 10));
  }
  if (argc == 5 && std::strcmp(argv[1], "script") == 0) return backstory::Script(argv[2], argv[3], argv[4]);
  std::fprintf(stderr,
               "usage: store_writer fill DIR closed|killed | append DIR ORACLE SEED | script DIR ORACLE STREAM\n");
  return 2;
}
