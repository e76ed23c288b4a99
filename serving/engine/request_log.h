// Answered requests, sampled and recorded so that they can be scored again: warm-up of a new version reads them.
//
// Format: JSON lines, one request a line:
//   {"namespace":"default","user":"42","scene":"home","request_id":"7","now_us":1700000000000000,
//    "as_of_us":1699999999000000,"criticality":"online","features":{"device":"phone","age":31.0},
//    "items":["1","2"],"numbers":{"bid":[0.1,0.2]},"texts":{"brand":["a",""]},
//    "model":"grab","version":"3","config_version":"calibration-1/launch","seq":17,"epoch":0,"parameters":{"history_rows":"1000000"},
//    "scores":{"like":[0.25,0.5]}}
// 64-bit ids are decimal strings; absent keys have their default. Everything from "model" on tells what was answered
// and is not needed to score again. A line holds raw user ids: keep the file as safe as the store.
#ifndef BACKSTORY_SERVING_ENGINE_REQUEST_LOG_H_
#define BACKSTORY_SERVING_ENGINE_REQUEST_LOG_H_

#include <cstdio>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "serving/engine/rank_query.h"

namespace backstory {

// Thread-safe; must not block for long: it runs on a worker after the reply was sent.
class RequestRecorder {
 public:
  virtual ~RequestRecorder() = default;
  virtual void Record(const RankQuery& query, const RankReply& reply) = 0;
};

// Appends to a file up to `bytes_max`, then drops (and counts).
class JsonLinesRecorder : public RequestRecorder {
 public:
  static absl::StatusOr<std::unique_ptr<JsonLinesRecorder>> Open(const std::string& path, uint64_t bytes_max);
  ~JsonLinesRecorder() override;
  void Record(const RankQuery& query, const RankReply& reply) override;
  uint64_t dropped() const;

 private:
  JsonLinesRecorder(std::FILE* file, uint64_t bytes, uint64_t bytes_max)
      : file_(file), bytes_(bytes), bytes_max_(bytes_max) {}
  mutable std::mutex mutex_;
  std::FILE* file_;       // guarded by mutex_
  uint64_t bytes_;        // guarded by mutex_
  uint64_t dropped_ = 0;  // guarded by mutex_
  const uint64_t bytes_max_;
};

// Whether a request belongs to the sample: a pure function of its identity, so that a retry is in it or not as before.
bool InSample(const RankQuery& query, double fraction);

std::string ToJsonLine(const RankQuery& query, const RankReply& reply);
absl::StatusOr<RankQuery> QueryFromJsonLine(std::string_view line);
// At most `records_max`, the first ones. NOT_FOUND if there is no such file; INVALID_ARGUMENT naming file and line.
// With `unreadable`, lines that cannot be read are counted there and passed over, unless there is no other.
absl::StatusOr<std::vector<RankQuery>> ReadRequestLog(const std::string& path, size_t records_max,
                                                      size_t* unreadable = nullptr);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_REQUEST_LOG_H_
