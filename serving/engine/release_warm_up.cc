#include "serving/engine/release_warm_up.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace backstory {
namespace {

// What a wait on the injected clock looks at it every.
constexpr int64_t kLookUs = 10'000;
constexpr int64_t kQueueFullPauseUs = 5'000;

}  // namespace

WarmUpPlan PlanWarmUp(std::vector<UserStateCache::UserHeat> present, const std::set<UserKey>& warm,
                      const std::set<UserKey>& tried, double share_wanted, size_t bytes_max) {
  std::stable_sort(present.begin(), present.end(), [](const auto& a, const auto& b) { return a.heat > b.heat; });
  double total = 0, reached = 0;
  for (const auto& user : present) {
    total += user.heat;
    if (warm.contains(user.user)) reached += user.heat;
  }
  WarmUpPlan plan;
  if (total <= 0) return plan;
  plan.share = reached / total;
  size_t bytes = 0;
  for (auto& user : present) {
    if (reached >= share_wanted * total) break;
    if (warm.contains(user.user) || tried.contains(user.user)) continue;
    bytes += user.bytes;
    if (bytes > bytes_max) break;
    reached += user.heat;
    plan.users.push_back(std::move(user.user));
  }
  return plan;
}

ReleaseWarmUp::ReleaseWarmUp(WarmUpOptions options, UserStateCache* cache, const Clock* clock, Metrics* metrics,
                             Build build)
    : options_(options),
      cache_(cache),
      clock_(clock),
      build_(std::move(build)),
      share_metric_(
          metrics->GetGauge("backstory_release_warm_share",
                            "Share of the present version's use by users whom the next version has a state of")),
      users_built_(metrics->GetCounter("backstory_release_warm_users_total",
                                       "User states built for a version before a label moved to it",
                                       {{"outcome", "built"}})),
      users_failed_(metrics->GetCounter("backstory_release_warm_users_total",
                                        "User states built for a version before a label moved to it",
                                        {{"outcome", "failed"}})),
      rows_(metrics->GetCounter("backstory_release_warm_rows_total",
                                "K/V rows computed for a version before a label moved to it")),
      metrics_(metrics) {}

ReleaseWarmUp::~ReleaseWarmUp() {
  Stop();
  Join();
}

void ReleaseWarmUp::Stop() {
  std::lock_guard lock(mutex_);
  stopped_ = true;
  for (const auto& task : tasks_) task->cancelled = true;
  changed_.notify_all();
}

void ReleaseWarmUp::Join() {
  if (thread_.joinable()) thread_.join();
}

void ReleaseWarmUp::Forget(const ServedModel& unloaded) {
  std::lock_guard lock(mutex_);
  for (const auto& task : tasks_) {
    if (task->next->name == unloaded.name && task->next->version == unloaded.version) task->cancelled = true;
  }
  changed_.notify_all();
}

std::shared_ptr<ReleaseWarmUp::Task> ReleaseWarmUp::Enqueue(std::shared_ptr<const ServedModel> next,
                                                            std::string next_key, std::string present_key, bool first) {
  for (auto it = tasks_.begin(); it != tasks_.end(); ++it) {
    const std::shared_ptr<Task> task = *it;
    if (task->next_key != next_key || task->present_key != present_key || task->cancelled) continue;
    if (first && it != tasks_.begin()) {  // somebody waits for it now
      tasks_.erase(it);
      tasks_.insert(tasks_.begin() + 1, task);
    }
    return task;
  }
  auto task = std::make_shared<Task>();
  task->next = std::move(next);
  task->next_key = std::move(next_key);
  task->present_key = std::move(present_key);
  tasks_.insert(first && !tasks_.empty() ? tasks_.begin() + 1 : tasks_.end(), task);
  if (!thread_.joinable()) thread_ = std::thread([this] { Work(); });
  changed_.notify_all();
  return task;
}

void ReleaseWarmUp::Start(std::shared_ptr<const ServedModel> next, std::string next_key, std::string present_key) {
  if (options_.share <= 0 || next_key == present_key) return;
  std::lock_guard lock(mutex_);
  if (!stopped_) Enqueue(std::move(next), std::move(next_key), std::move(present_key), /*first=*/false);
}

WarmUpResult ReleaseWarmUp::Wait(std::shared_ptr<const ServedModel> next, std::string next_key,
                                 std::string present_key) {
  if (options_.share <= 0) return {.reason = "at_once"};
  if (next_key == present_key) return {};
  const int64_t deadline_us = clock_->MonotonicMicros() + options_.time_max_us;
  std::unique_lock lock(mutex_);
  if (stopped_) return {0, "stopped"};
  while (true) {
    const std::shared_ptr<Task> task = Enqueue(next, next_key, present_key, /*first=*/true);
    task->awaited = true;
    while (!task->done) {
      // Another version's task may run before: the limit holds all the same.
      if (!task->cancelled && clock_->MonotonicMicros() >= deadline_us) {
        const WarmUpPlan plan = Plan(*task, std::set<UserKey>());
        return {plan.share, plan.share >= options_.share ? "warm" : "time"};
      }
      changed_.wait_for(lock, std::chrono::microseconds(kLookUs));
    }
    // One that ended for want of room just before it was joined has more now.
    if (task->result.reason != "room" || task->had_room) return task->result;
    if (stopped_) return {task->result.share, "stopped"};
  }
}

void ReleaseWarmUp::Work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopped_ || !tasks_.empty(); });
    if (tasks_.empty()) return;
    const std::shared_ptr<Task> task = tasks_.front();
    lock.unlock();
    task->deadline_us = clock_->MonotonicMicros() + options_.time_max_us;
    const WarmUpResult result = task->cancelled ? WarmUpResult{0, "stopped"} : Run(task.get());
    metrics_
        ->GetCounter("backstory_release_warm_ups_total", "Warm-ups of a version by why they ended",
                     {{"reason", result.reason}})
        ->Add();
    lock.lock();
    task->result = result;
    task->done = true;
    std::erase(tasks_, task);
    changed_.notify_all();
  }
}

WarmUpPlan ReleaseWarmUp::Plan(const Task& task, const std::set<UserKey>& tried) const {
  std::set<UserKey> warm;
  size_t bytes = 0;
  for (UserStateCache::UserHeat& user : cache_->UsersOf(task.next_key)) {
    bytes += user.bytes;
    warm.insert(std::move(user.user));
  }
  size_t room = options_.bytes_max - std::min(options_.bytes_max, bytes);
  if (!task.had_room) room = std::min(room, options_.cache_bytes - std::min(options_.cache_bytes, cache_->bytes()));
  WarmUpPlan plan = PlanWarmUp(cache_->UsersOf(task.present_key), warm, tried, options_.share, room);
  share_metric_->Set(plan.share);
  return plan;
}

bool ReleaseWarmUp::Over(const Task& task, int64_t pause_us, WarmUpResult* result) {
  const int64_t until_us = clock_->MonotonicMicros() + pause_us;
  std::unique_lock lock(mutex_);
  while (true) {
    const int64_t now_us = clock_->MonotonicMicros();
    if (task.cancelled) {
      result->reason = "stopped";
      return true;
    }
    if (now_us >= task.deadline_us) {
      result->reason = "time";
      return true;
    }
    if (now_us >= until_us) return false;
    changed_.wait_for(lock, std::chrono::microseconds(std::min(kLookUs, until_us - now_us)));
  }
}

WarmUpResult ReleaseWarmUp::Run(Task* task) {
  WarmUpResult result;
  std::set<UserKey> tried;
  int64_t pause_us = 0;
  while (true) {
    task->had_room = task->awaited.load();
    const WarmUpPlan plan = Plan(*task, tried);
    result.share = plan.share;
    if (plan.share >= options_.share) return result;
    if (plan.users.empty()) {
      if (task->awaited && !task->had_room) continue;  // somebody waits by now
      result.reason = "room";
      return result;
    }
    for (size_t i = 0; i < plan.users.size();) {
      if (Over(*task, pause_us, &result)) {
        result.share = Plan(*task, tried).share;
        return result;
      }
      const absl::StatusOr<uint64_t> rows = build_(plan.users[i], task->next);
      if (absl::IsResourceExhausted(rows.status())) {
        pause_us = kQueueFullPauseUs;
        continue;
      }
      tried.insert(plan.users[i++]);
      (rows.ok() ? users_built_ : users_failed_)->Add();
      if (!rows.ok()) continue;
      rows_->Add(static_cast<double>(*rows));
      pause_us = static_cast<int64_t>(static_cast<double>(*rows) / options_.rows_per_s * 1e6);
    }
  }
}

}  // namespace backstory
