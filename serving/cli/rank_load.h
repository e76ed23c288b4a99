// Rank calls for a load test: made before the clock starts, sent in the order of their arrivals, and where their time
// went.
#ifndef BACKSTORY_SERVING_CLI_RANK_LOAD_H_
#define BACKSTORY_SERVING_CLI_RANK_LOAD_H_

#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backstory/v1/ranking.grpc.pb.h"
#include "serving/cli/client_options.h"
#include "serving/cli/open_loop.h"

namespace backstory {

struct RankLoadOptions {
  ClientOptions client;
  std::string ns, model;
  std::vector<std::string> users;
  std::vector<uint64_t> items;
  // The last users of the list that come in rotation, so that a server which has no room for all of them finds none of
  // their states; the others are drawn at random. 0: all are drawn.
  size_t rotated_users = 0;
  double rotated_share = 0;  // of the requests
  int candidates = 200, channels = 2;
  double seconds = 10, warmup = 2;
  size_t in_flight_max = 4'096;
  uint64_t seed = 1;
  bool batch = false, stages = false;
};

// Where the time of a run's requests went, by the server's own clock. "outside" is the rest of the client's time: the
// wire on both sides, threads that wake up, the server's bookkeeping.
class StageReport {
 public:
  struct Request {
    int64_t total_us = 0;  // from send to answer
    std::vector<int64_t> stage_us;
  };
  void Add(const google::protobuf::RepeatedPtrField<v1::StageTiming>& timings, int64_t total_us);
  // One line a stage: mean, p50, p99 and most over all requests, mean over the slowest hundredth.
  void Print(std::FILE* to) const;

 private:
  size_t IndexOf(const std::string& stage);
  mutable std::mutex mutex_;
  std::vector<std::string> stages_;  // guarded by mutex_
  std::vector<Request> requests_;    // guarded by mutex_
};

class RankLoad {
 public:
  explicit RankLoad(const RankLoadOptions& options);
  // Ranks for every user that is not rotated, once, so that their states are there; not measured. Ends the command if
  // the server refuses.
  void Prime() const;
  LoadResult Run(double rate, StageReport* stages) const;

 private:
  void Issue(size_t request, StageReport* stages, std::function<void(std::string)> done) const;
  size_t RequestOf(size_t arrival) const;

  const RankLoadOptions& options_;
  size_t per_user_ = 1;                    // different requests of a user
  std::vector<v1::RankRequest> requests_;  // [users][per_user_]
  std::vector<std::unique_ptr<v1::Ranking::Stub>> stubs_;
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_RANK_LOAD_H_
