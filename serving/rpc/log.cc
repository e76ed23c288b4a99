#include "serving/rpc/log.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace backstory::rpc {
namespace {

bool LevelFromName(std::string_view name, spdlog::level::level_enum* level) {
  if (name == "debug") return *level = spdlog::level::debug, true;
  if (name == "info") return *level = spdlog::level::info, true;
  if (name == "warning") return *level = spdlog::level::warn, true;
  if (name == "error") return *level = spdlog::level::err, true;
  return false;
}

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::err;
}

std::string_view NameOf(LogLevel level) {
  constexpr std::string_view kNames[] = {"debug", "info", "warning", "error"};
  return kNames[static_cast<int>(level)];
}

int64_t SteadySeconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Log>> Log::Open(const LogOptions& options) {
  spdlog::level::level_enum level;
  if (!LevelFromName(options.level, &level)) {
    return absl::InvalidArgumentError(
        absl::StrCat("log.level must be debug, info, warning or error, is \"", options.level, "\""));
  }
  std::shared_ptr<spdlog::logger> sink;
  try {
    spdlog::sink_ptr target;
    if (options.file.empty()) {
      target = std::make_shared<spdlog::sinks::stderr_sink_mt>();
    } else {
      target = std::make_shared<spdlog::sinks::basic_file_sink_mt>(options.file);
    }
    sink = std::make_shared<spdlog::logger>("backstory", target);
  } catch (const spdlog::spdlog_ex& e) {
    return absl::InvalidArgumentError(absl::StrCat("log.file cannot be opened: ", e.what()));
  }
  sink->set_pattern("%v");
  sink->set_level(level);
  sink->flush_on(spdlog::level::info);
  std::string key = options.user_hash_key;
  if (key.empty()) {
    key.resize(32);
    if (RAND_bytes(reinterpret_cast<unsigned char*>(key.data()), static_cast<int>(key.size())) != 1) {
      return absl::InternalError("no random bytes for the user hash key");
    }
  }
  return std::unique_ptr<Log>(new Log(std::move(sink), std::move(key)));
}

Log::Log(std::shared_ptr<spdlog::logger> sink, std::string key) : sink_(std::move(sink)), key_(std::move(key)) {}
Log::~Log() { sink_->flush(); }

void Log::Write(LogLevel level, std::string_view message, std::initializer_list<LogField> fields) {
  if (sink_->should_log(ToSpdlog(level))) Emit(level, message, fields, 0);
}

void Log::WriteLimited(std::string_view key, LogLevel level, std::string_view message,
                       std::initializer_list<LogField> fields) {
  if (!sink_->should_log(ToSpdlog(level))) return;
  int64_t suppressed = 0;
  {
    std::lock_guard lock(mutex_);
    auto it = limits_.find(key);
    if (it == limits_.end()) it = limits_.emplace(std::string(key), Limit()).first;
    const int64_t now_s = SteadySeconds();
    if (it->second.last_s == now_s) {
      ++it->second.suppressed;
      return;
    }
    suppressed = std::exchange(it->second.suppressed, 0);
    it->second.last_s = now_s;
  }
  Emit(level, message, fields, suppressed);
}

void Log::Emit(LogLevel level, std::string_view message, std::initializer_list<LogField> fields, int64_t suppressed) {
  nlohmann::ordered_json line;
  line["time"] = absl::FormatTime("%Y-%m-%dT%H:%M:%E6SZ", absl::Now(), absl::UTCTimeZone());
  line["level"] = std::string(NameOf(level));
  line["message"] = std::string(message);
  for (const auto& [name, value] : fields) {
    std::visit([&line, name = name](const auto& v) { line[std::string(name)] = v; }, value);
  }
  if (suppressed > 0) line["suppressed"] = suppressed;
  // replace: bytes that are not UTF-8 must not end the process.
  sink_->log(ToSpdlog(level), line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

std::string Log::UserHash(std::string_view ns, std::string_view user) const {
  const std::string text = absl::StrCat(absl::string_view(ns.data(), ns.size()), "/",
                                        absl::string_view(user.data(), user.size()));
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  HMAC(EVP_sha256(), key_.data(), static_cast<int>(key_.size()), reinterpret_cast<const unsigned char*>(text.data()),
       text.size(), digest, &size);
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest), 8));
}

}  // namespace backstory::rpc
