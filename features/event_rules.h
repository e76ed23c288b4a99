// What an event must look like, and what a set of events means: the rules of docs/concepts/events.md as functions.
#ifndef BACKSTORY_FEATURES_EVENT_RULES_H_
#define BACKSTORY_FEATURES_EVENT_RULES_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "features/event.h"

namespace backstory {

struct EventLimits {
  static constexpr size_t kSceneBytesMax = 64;
  static constexpr size_t kContextMax = 32;
  static constexpr size_t kContextNameBytesMax = 64;
  static constexpr size_t kContextValueBytesMax = 256;
  static constexpr size_t kEmbeddingsMax = 16;
  static constexpr int64_t kTimeUsMax = (int64_t{1} << 62) - 1;
};

// INVALID_ARGUMENT naming the field and the limit: sizes and a finite value, which every event obeys wherever it is
// from. The store checks these and its own rules of time.
absl::Status CheckEventSizes(const Event& event);

// The same for all rules of an event that a client or a file gives, CheckEventSizes among them. Knows no clock: "too far in the future" is the store's to say.
absl::Status ValidateEvent(const Event& event);

// XXH3-64 over the canonical fields: the id of an event that came without one. Never 0.
uint64_t DerivedEventId(const Event& event);

// What happened to the events of one CanonicalHistory call.
struct CanonicalCounts {
  uint64_t duplicates = 0;  // same event id, same or lower revision
  uint64_t conflicts = 0;   // same event id and revision, other content: the first given is kept
  uint64_t tombstones = 0;  // events deleted by a tombstone revision
};

// A user's events in any order, with repetitions -> canonical history, as the store would serve it: per event id the
// highest revision, deleted events gone, sorted by (time, event id).
CanonicalCounts CanonicalHistory(std::vector<Event>* events);

}  // namespace backstory

#endif  // BACKSTORY_FEATURES_EVENT_RULES_H_
