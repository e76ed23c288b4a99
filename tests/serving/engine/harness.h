// An engine over fakes that does nothing until told to: no worker threads, a clock moved by hand.
#ifndef BACKSTORY_TESTS_SERVING_ENGINE_HARNESS_H_
#define BACKSTORY_TESTS_SERVING_ENGINE_HARNESS_H_

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "serving/engine/clock.h"
#include "serving/engine/engine_impl.h"
#include "tests/serving/engine/fakes.h"

namespace backstory::testing {

inline constexpr int64_t kSecond = 1'000'000;
inline constexpr int64_t kNow = int64_t{1'700'000'000} * kSecond;

inline Event Shown(uint64_t id, int64_t time_us, uint64_t item, uint64_t request = 0) {
  Event event;
  event.kind = EventKind::kExposure;
  event.event_id = id;
  event.time_us = time_us;
  event.item_id = item;
  event.request_id = request;
  return event;
}

inline Event Clicked(uint64_t id, int64_t time_us, uint64_t item, uint64_t exposure = 0) {
  Event event;
  event.kind = EventKind::kAction;
  event.event_id = id;
  event.time_us = time_us;
  event.item_id = item;
  event.action = ActionType::kClick;
  event.exposure_id = exposure;
  return event;
}

class Harness {
 public:
  explicit Harness(std::map<std::string, std::shared_ptr<const ServedModel>> versions,
                   std::map<std::string, std::string> parameters = {}, int threads = 0, EngineOptions options = {})
      : clock(kNow, 5'000'000) {
    Start(&store, &catalog, std::move(versions), std::move(parameters), threads, std::move(options));
  }
  // Shares another's store and catalog: the same world, seen by an engine that remembers nothing.
  Harness(Harness* world, std::map<std::string, std::shared_ptr<const ServedModel>> versions,
          std::map<std::string, std::string> parameters = {}, int threads = 0)
      : clock(world->clock.WallMicros(), world->clock.MonotonicMicros()) {
    Start(&world->store, &world->catalog, std::move(versions), std::move(parameters), threads, {});
  }

  // Answers before it returns; runs whatever waits.
  absl::StatusOr<RankReply> Rank(RankQuery query) {
    std::optional<absl::StatusOr<RankReply>> answer;
    engine->Rank(std::move(query), [&answer](absl::StatusOr<RankReply> reply) { answer = std::move(reply); });
    while (!answer.has_value() && engine->RunOne()) {
    }
    if (!answer.has_value()) return absl::InternalError("never answered");
    return *std::move(answer);
  }
  void RunAll() {
    while (engine->RunOne()) {
    }
  }
  AppendResult Append(const std::string& user, std::vector<Event> events) {
    auto result = engine->Append({"default", user}, events, Durability::kSynced);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *result : AppendResult{};
  }

  ManualClock clock;
  FakeHistoryStore store;
  FakeCatalog catalog;
  MemoryMetrics metrics;
  std::unique_ptr<EngineImpl> engine;

 private:
  void Start(HistoryStore* history, Catalog* items, std::map<std::string, std::shared_ptr<const ServedModel>> versions,
             std::map<std::string, std::string> parameters, int threads, EngineOptions options) {
    ParameterSet set;
    const absl::Status status = set.SetAll(parameters, ParameterSource::kServer);
    EXPECT_TRUE(status.ok()) << status;
    const std::string name = versions.begin()->second->name;
    const std::string first = versions.begin()->first;
    ModelLoader loader = [versions](const ModelSource& source) -> absl::StatusOr<std::shared_ptr<const ServedModel>> {
      const auto found = versions.find(source.version);
      if (found == versions.end()) return absl::NotFoundError("no such version");
      return found->second;
    };
    engine = std::make_unique<EngineImpl>(std::move(options), std::move(set), threads, history, items,
                                          std::move(loader), &clock, &metrics);
    EXPECT_TRUE(engine->models().Load(name, first).ok());
    EXPECT_TRUE(engine->models().SetLabel(name, "stable", first).ok());
  }
};

inline RankQuery Query(const std::string& user, std::vector<uint64_t> items = {1, 2, 3}, int64_t now_us = 0) {
  RankQuery query;
  query.units.user = user;
  query.candidates.item_ids = std::move(items);
  query.now_us = now_us;
  return query;
}

}  // namespace backstory::testing

#endif  // BACKSTORY_TESTS_SERVING_ENGINE_HARNESS_H_
