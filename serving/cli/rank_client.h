// Ranks many independent requests over Ranking.RankStream, several streams at once.
#ifndef BACKSTORY_SERVING_CLI_RANK_CLIENT_H_
#define BACKSTORY_SERVING_CLI_RANK_CLIENT_H_

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "backstory/v1/ranking.grpc.pb.h"

namespace backstory {

// Sends every request, with a request_id of its own making, over `streams` streams and calls `done(i, response)` for
// each, one call at a time. A request that the server sheds (UNAVAILABLE) is sent again after its pushback. Any other
// error (of a stream, of one request, or returned by `done`) ends it and is returned. Calls `progress(answered)` now and
// then. Neither callback may throw: they run on the streams' threads.
absl::Status RankAll(v1::Ranking::Stub* stub, std::vector<v1::RankRequest>* requests, int streams,
                     const std::function<absl::Status(size_t, const v1::RankResponse&)>& done,
                     const std::function<void(size_t)>& progress);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_RANK_CLIENT_H_
