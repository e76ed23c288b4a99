// What `backstory evaluate` shows a person: one user's held-out items, ranked, with the truth and the reasons beside them.
#ifndef BACKSTORY_SERVING_CLI_EVALUATE_REPORT_H_
#define BACKSTORY_SERVING_CLI_EVALUATE_REPORT_H_

#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>

#include "backstory/v1/ranking.pb.h"
#include "serving/cli/held_out.h"

namespace backstory {

using Titles = std::unordered_map<uint64_t, std::string>;

// `shown[i]` is the event behind candidate i of `response`. Lines end in '\n'; rank order is by probability.
std::string ShowcaseTable(const UserHistory& user, std::span<const size_t> shown, const v1::RankResponse& response,
                          const Titles& titles);

// "hit: 2,158 rows reused, 0 computed (host)": the cache report in one line.
std::string CacheLine(const v1::CacheReport& cache);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_EVALUATE_REPORT_H_
