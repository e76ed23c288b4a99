// Internal to serving/engine/batch: one call of BatchScorer::Score on its way through the engine.
#ifndef BACKSTORY_SERVING_ENGINE_BATCH_BATCH_RUN_H_
#define BACKSTORY_SERVING_ENGINE_BATCH_BATCH_RUN_H_

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <list>
#include <mutex>
#include <stop_token>
#include <vector>

#include "absl/status/status.h"
#include "serving/engine/batch/batch_plan.h"
#include "serving/engine/batch/batch_scorer.h"

namespace backstory {

// How the requests of one user follow each other.
enum class UserOrder {
  // The newest view first, alone: it builds the state. The others, by time, then read prefixes of it, any number at
  // once.
  kNewestFirst,
  // One after the other, by time. For models whose rows may look different in hindsight (a label that came later, shown
  // as known): the state then moves forward with the requests, whereas one of the past would be built for each anew.
  kOneByOne,
};
UserOrder UserOrderFor(const TokenizerConfig& config);

// Issues requests from the calling thread and waits for their answers, which arrive on the engine's threads.
class BatchRun {
 public:
  // Everything must outlive the run. `scores` has its columns at full length; rows of the plan are filled in.
  // options.model names the exact version.
  BatchRun(Engine* engine, const BatchRows& rows, const BatchPlan& plan, const BatchOptions& options, UserOrder order,
           BatchScores* scores);

  // On return nothing of the run is in the engine any more.
  absl::Status Run(std::stop_token stop, const BatchScorer::Progress& progress);

 private:
  using Time = std::chrono::steady_clock::time_point;
  // The requests of one user.
  struct Lane {
    BatchRange requests;
    uint32_t issued = 0, in_flight = 0;
    bool done() const { return issued == requests.size() && in_flight == 0; }
  };
  using LaneIt = std::list<Lane>::iterator;
  struct Flight {
    LaneIt lane;
    uint32_t request = 0;
    Time not_before{};  // when it is to be asked again
  };

  bool CanIssue(const Lane& lane) const;
  uint32_t NextRequest(const Lane& lane) const;
  bool IssueNext();
  void Issue(Flight flight);
  bool IssueAgain(Time now);
  void Collect(std::vector<Flight> finished, std::vector<Flight> again, Time now);
  uint32_t Candidates(const Flight& flight) const { return plan_.requests[flight.request].size(); }
  std::span<const uint32_t> Members(uint32_t request) const;

  void Answered(Flight flight, absl::StatusOr<RankReply> reply);
  absl::Status Refused(const Flight& flight, const absl::Status& status, bool* again);
  void Fill(uint32_t request, const RankReply& reply);

  Engine* const engine_;
  const BatchRows& rows_;
  const BatchPlan& plan_;
  const BatchOptions& options_;
  const UserOrder order_;
  BatchScores* const scores_;  // rows of a request are written by the thread that answers it

  // Of the calling thread.
  std::list<Lane> lanes_;  // users with requests left or in flight, in order
  size_t next_user_ = 0;
  size_t in_flight_ = 0, candidates_in_flight_ = 0;
  std::deque<Flight> again_;
  size_t rows_done_ = 0;

  std::mutex mutex_;
  std::condition_variable changed_;
  // All guarded by mutex_.
  std::vector<Flight> finished_, refused_;
  std::vector<BadBatchRow> bad_;
  absl::Status failure_;
  size_t wake_at_ = 1;  // the calling thread sleeps until so many are back
  bool stopped_ = false;
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_BATCH_BATCH_RUN_H_
