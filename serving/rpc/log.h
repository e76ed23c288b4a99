// Structured logs: one JSON object a line. No raw user id goes in: UserHash stands for it.
#ifndef BACKSTORY_SERVING_RPC_LOG_H_
#define BACKSTORY_SERVING_RPC_LOG_H_

#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "absl/status/statusor.h"

namespace spdlog {
class logger;
}

namespace backstory::rpc {

enum class LogLevel { kDebug, kInfo, kWarning, kError };
using LogValue = std::variant<std::string, int64_t, double, bool>;
using LogField = std::pair<std::string_view, LogValue>;

struct LogOptions {
  std::string level = "info";  // debug, info, warning, error
  std::string file;            // empty = standard error
  std::string user_hash_key;   // empty = random: hashes then compare within one run only
};

// Thread-safe. Lines look like {"time":"2026-01-31T12:00:00.000000Z","level":"info","message":"ready",...fields}.
class Log {
 public:
  static absl::StatusOr<std::unique_ptr<Log>> Open(const LogOptions& options);
  ~Log();

  void Write(LogLevel level, std::string_view message, std::initializer_list<LogField> fields = {});
  // At most one line a second for each `key`; the next one says how many were left out ("suppressed").
  void WriteLimited(std::string_view key, LogLevel level, std::string_view message,
                    std::initializer_list<LogField> fields = {});

  // 16 hex digits of HMAC-SHA256(key, namespace / user).
  std::string UserHash(std::string_view ns, std::string_view user) const;

 private:
  struct Limit {
    int64_t last_s = -1;
    int64_t suppressed = 0;
  };

  Log(std::shared_ptr<spdlog::logger> sink, std::string key);
  void Emit(LogLevel level, std::string_view message, std::initializer_list<LogField> fields, int64_t suppressed);

  std::shared_ptr<spdlog::logger> sink_;
  const std::string key_;
  std::mutex mutex_;
  std::map<std::string, Limit, std::less<>> limits_;  // guarded by mutex_; keys are code literals, so bounded
};

}  // namespace backstory::rpc

#endif  // BACKSTORY_SERVING_RPC_LOG_H_
