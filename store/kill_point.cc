#include "store/kill_point.h"

#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdlib>

namespace backstory {
namespace {

constexpr std::string_view kNames[] = {
    "before_write",    "after_write",         "after_sync",     "after_watermark",    "record_before_rename",
    "record_renamed",  "open_marked",         "open_recovered", "flushed",            "compacted",
    "checkpoint_made", "checkpoint_adopted",  "import_frame",   "delete_prepared",    "delete_user_prepared",
    "merge_prepared",  "retain_prepared",     "fold_prepared",  "close_flushed",      "close_done",
};
static_assert(std::size(kNames) == static_cast<size_t>(KillPoint::kCloseDone) + 1);

struct Armed {
  std::string_view name;  // empty: none
  std::atomic<long> passes_left{0};

  Armed() {
    const char* text = std::getenv("BACKSTORY_KILL_POINT");
    if (text == nullptr) return;
    const std::string_view given(text);
    const size_t colon = given.find(':');
    if (colon == std::string_view::npos) return;
    name = given.substr(0, colon);
    passes_left = std::strtol(text + colon + 1, nullptr, 10);
  }
};

}  // namespace

std::span<const std::string_view> KillPointNames() { return kNames; }

void PassKillPoint(KillPoint point) {
  static Armed armed;
  if (armed.name.empty() || armed.name != kNames[static_cast<size_t>(point)]) return;
  if (armed.passes_left.fetch_sub(1) == 1) kill(getpid(), SIGKILL);
}

}  // namespace backstory
