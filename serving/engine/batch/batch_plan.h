// Internal to serving/engine/batch: which rows can be scored, and how they become requests. Pure functions.
#ifndef BACKSTORY_SERVING_ENGINE_BATCH_BATCH_PLAN_H_
#define BACKSTORY_SERVING_ENGINE_BATCH_BATCH_PLAN_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "serving/engine/batch/batch_rows.h"
#include "serving/engine/batch/batch_scorer.h"
#include "serving/engine/rank_query.h"

namespace backstory {

// Half-open ranges.
struct BatchRange {
  uint32_t begin = 0, end = 0;
  uint32_t size() const { return end - begin; }
};

struct BatchPlan {
  std::vector<uint32_t> order;       // rows that can be scored, request by request
  std::vector<BatchRange> requests;  // of `order`, 1..kCandidatesMax rows each
  std::vector<BatchRange> users;     // of `requests`, those of one user, by the time that they see the history at
  std::vector<BadBatchRow> bad;      // ascending by row
};

// INVALID_ARGUMENT: what is wrong with a column as a whole, by its name.
absl::Status CheckBatchColumns(const BatchRows& rows);

// What is wrong with one row; an empty reason if nothing is. `rows` passed CheckBatchColumns.
BadBatchRow CheckBatchRow(const BatchRows& rows, size_t row, const BatchOptions& options);

// Users in order of their first row, so that a file sorted by user is read and cached in its own order.
absl::StatusOr<BatchPlan> PlanBatch(const BatchRows& rows, const BatchOptions& options);

// One request of a plan. `members`: its rows.
RankQuery BatchQuery(const BatchRows& rows, std::span<const uint32_t> members, const BatchOptions& options);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_BATCH_BATCH_PLAN_H_
