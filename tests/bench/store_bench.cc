// The store's numbers: bulk import, synced appends from many streams, newest-4,096 reads, bytes an event. Prints
// machine, settings, medians, and the physical bound beside each.
//
//   store_bench [--events N] [--users N] [--streams N] [--dir DIR]
#include <fcntl.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "store/rocksdb_history_store.h"

namespace backstory {
namespace {

constexpr int64_t kNowUs = int64_t{1'700'000'000} * 1'000'000;

double Seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

std::string Numbered(const char* name, size_t n) {
  std::string text = name;
  text += std::to_string(n);
  return text;
}

struct Settings {
  size_t events = 1'000'000;
  size_t users = 2'000;
  size_t streams = 16;
  std::string dir = "/tmp/backstory_store_bench";
};

// Ratings like MovieLens': sessions of a few events, seconds apart, months between; Zipf items; random 64-bit ids.
std::vector<Event> MakeHistory(std::mt19937_64* random, size_t events) {
  std::vector<Event> history;
  int64_t time_us = kNowUs - static_cast<int64_t>((*random)() % 300'000'000) * 1'000'000;
  for (size_t i = 0; i < events; ++i) {
    Event e;
    e.kind = EventKind::kAction;
    e.action = ActionType::kRating;
    e.event_id = (*random)();
    const double u = static_cast<double>((*random)() >> 11) * 0x1.0p-53;
    e.item_id = static_cast<uint64_t>(std::exp(u * 12.0));  // 1 .. 160,000
    e.value = static_cast<float>((*random)() % 10 + 1) / 2;
    time_us += static_cast<int64_t>((*random)() % 40) * 1'000'000;
    if ((*random)() % 50 == 0) time_us += static_cast<int64_t>((*random)() % 1'000'000) * 1'000'000;
    e.time_us = std::min(time_us, kNowUs);
    history.push_back(std::move(e));
  }
  return history;
}

void PrintMachine(const Settings& settings) {
  utsname name{};
  uname(&name);
  std::string cpu;
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.rfind("model name", 0) == 0) {
      cpu = line.substr(line.find(':') + 2);
      break;
    }
  }
  std::printf("machine: %s, %u threads, Linux %s\n", cpu.c_str(), std::thread::hardware_concurrency(), name.release);
  std::printf("settings: %zu events, %zu users, %zu streams, directory %s\n", settings.events, settings.users,
              settings.streams, settings.dir.c_str());
}

// The physical bounds: what the disk and memory do for the bytes involved, measured here and now.
double FdatasyncMs(const std::string& dir) {
  const std::string path = dir + "/fsync_probe";
  const int fd = open(path.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
  std::vector<double> times;
  const std::string bytes(4096, 'x');
  for (int i = 0; i < 50; ++i) {
    if (write(fd, bytes.data(), bytes.size()) < 0) break;
    const double start = Seconds();
    fdatasync(fd);
    times.push_back((Seconds() - start) * 1e3);
  }
  close(fd);
  std::filesystem::remove(path);
  return Median(times);
}

void BenchImport(const Settings& settings, HistoryStore* store) {
  std::mt19937_64 random(1);
  std::vector<HistoryStore::UserBatch> batches;
  for (size_t u = 0; u < settings.users; ++u) {
    batches.push_back({{"bench", Numbered("user", u)}, MakeHistory(&random, settings.events / settings.users)});
  }
  const double start = Seconds();
  constexpr size_t kUsersPerCall = 20;
  for (size_t i = 0; i < batches.size(); i += kUsersPerCall) {
    const size_t n = std::min(kUsersPerCall, batches.size() - i);
    if (auto done = store->AppendMany({batches.data() + i, n}, kNowUs, Durability::kBuffered); !done.ok()) {
      std::fprintf(stderr, "%s\n", done.status().ToString().c_str());
      std::exit(1);
    }
  }
  const double took = Seconds() - start;
  const auto stats = *store->GetStats();
  std::printf("bulk import: %.0f events/s (%.2f s; bound: 100 bytes of log an event at 1 GB/s = 10,000,000)\n",
              static_cast<double>(settings.events) / took, took);
  std::printf("  one thread calls AppendMany with %zu users a call; %llu commits\n", kUsersPerCall,
              static_cast<unsigned long long>(stats.commits));
}

void BenchCompact(const Settings& settings, HistoryStore* store) {
  const double start = Seconds();
  if (absl::Status status = store->Compact(); !status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  const auto stats = *store->GetStats();
  std::printf(
      "disk after compaction: %.2f bytes/event (%.1f MB, took %.1f s; bound: 8 random id + ~4 time, item, value)\n",
      static_cast<double>(stats.disk_bytes) / static_cast<double>(settings.events),
      static_cast<double>(stats.disk_bytes) / 1e6, Seconds() - start);
}

void BenchRead(HistoryStore* store) {
  std::mt19937_64 random(2);
  const UserKey user{"bench", "long"};
  for (int part = 0; part < 2; ++part) {
    if (!store->Append(user, MakeHistory(&random, 5'000), kNowUs, Durability::kBuffered).ok()) return;
  }
  std::vector<double> times;
  for (int i = 0; i < 400; ++i) {
    const double start = Seconds();
    auto read = store->Read(user, {.newest = 4096});
    times.push_back((Seconds() - start) * 1e3);
    if (!read.ok() || read->events.size() != 4096) std::fprintf(stderr, "read failed\n");
  }
  std::printf("newest 4,096 events, warm: median %.3f ms (bound: write %zu KB of events at 10 GB/s = %.3f ms)\n",
              Median(times), 4096 * sizeof(Event) / 1024, 4096.0 * sizeof(Event) / 10e9 * 1e3);
}

void BenchSynced(const Settings& settings, HistoryStore* store, size_t batch, double fsync_ms) {
  constexpr double kRunSeconds = 3;
  std::vector<std::thread> threads;
  std::atomic<uint64_t> acked{0};
  const uint64_t syncs_before = store->GetStats()->syncs;
  const double end = Seconds() + kRunSeconds;
  for (size_t t = 0; t < settings.streams; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(100 + t);
      std::vector<std::vector<Event>> prepared;
      for (int i = 0; i < 64; ++i) prepared.push_back(MakeHistory(&random, batch));
      for (size_t i = 0; Seconds() < end; ++i) {
        std::vector<Event>& events = prepared[i % prepared.size()];
        for (Event& e : events) e.event_id = random();
        const UserKey user{"bench", Numbered("stream", t * 1000 + i % 200)};
        if (auto done = store->Append(user, events, kNowUs, Durability::kSynced); !done.ok()) break;
        acked += events.size();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const double rate = static_cast<double>(acked) / kRunSeconds;
  const uint64_t syncs = store->GetStats()->syncs - syncs_before;
  std::printf(
      "synced appends, %zu streams x %zu events: %.0f events/s, %.0f fsyncs/s (bound: %zu streams x %zu / fsync %.2f "
      "ms = %.0f)\n",
      settings.streams, batch, rate, static_cast<double>(syncs) / kRunSeconds, settings.streams, batch, fsync_ms,
      static_cast<double>(settings.streams * batch) / (fsync_ms / 1e3));
}

int Main(int argc, char** argv) {
  Settings settings;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--events") == 0) settings.events = std::stoul(argv[i + 1]);
    if (std::strcmp(argv[i], "--users") == 0) settings.users = std::stoul(argv[i + 1]);
    if (std::strcmp(argv[i], "--streams") == 0) settings.streams = std::stoul(argv[i + 1]);
    if (std::strcmp(argv[i], "--dir") == 0) settings.dir = argv[i + 1];
  }
  std::filesystem::remove_all(settings.dir);
  std::filesystem::create_directories(settings.dir);
  PrintMachine(settings);
  const double fsync_ms = FdatasyncMs(settings.dir);
  {
    StoreOptions options;
    options.directory = settings.dir + "/store";
    auto opened = OpenHistoryStore(options);
    if (!opened.ok()) {
      std::fprintf(stderr, "%s\n", opened.status().ToString().c_str());
      return 1;
    }
    HistoryStore* store = opened->get();
    BenchImport(settings, store);
    BenchCompact(settings, store);
    BenchRead(store);
    BenchSynced(settings, store, 100, fsync_ms);
    BenchSynced(settings, store, 10, fsync_ms);
  }
  std::filesystem::remove_all(settings.dir);
  return 0;
}

}  // namespace
}  // namespace backstory

int main(int argc, char** argv) { return backstory::Main(argc, argv); }
