// Start here: the event, the noun that everything else in Backstory is built from.
//
// A user's history is a set of events. Identity is (namespace, user, event_id); the highest revision wins; a tombstone
// is a revision. Canonical order is (time_us, event_id). See docs/concepts/events.md for the rules in prose.
#ifndef BACKSTORY_FEATURES_EVENT_H_
#define BACKSTORY_FEATURES_EVENT_H_

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

namespace backstory {

// Persisted in the store and on the wire: values never change meaning.
enum class EventKind : uint8_t {
  kExposure = 1,  // an item was shown: item, request_id, position, scene
  kAction = 2,    // the user did something: item, type, value, optionally the exposure it answers
};

// Well-known action types, persisted; 1000 and above are the owner's own. A type selects the action class of a token.
enum class ActionType : uint16_t {
  kNone = 0,
  kClick = 1,
  kConversion = 2,
  kLike = 3,
  kRating = 4,    // value = the rating
  kDwell = 5,     // value = seconds
  kPurchase = 6,  // value = quantity or amount
  kDislike = 7,
  kShare = 8,
  kFirstCustom = 1000,
};

// One request-time or log-time context field ("device" = "phone"). Order is kept.
struct ContextField {
  std::string name;   // 1..64 bytes
  std::string value;  // 0..256 bytes; numbers as decimal text
  bool operator==(const ContextField&) const = default;
};

// One stored event. Equality compares every field.
struct Event {
  EventKind kind = EventKind::kExposure;
  uint64_t event_id = 0;
  uint32_t revision = 0;   // the highest wins; the same revision with other content is a conflict, the first is kept
  bool tombstone = false;  // this revision deletes the event
  int64_t time_us = 0;     // event time, microseconds since the Unix epoch, >= 0, never clamped
  uint64_t item_id = 0;
  uint64_t request_id = 0;                // 0 = none; members of one request form one tie group
  uint32_t position = 0;                  // EXPOSURE: slot in the page, 0 = unknown or first
  std::string scene;                      // EXPOSURE: where it was shown, <= 64 bytes
  ActionType action = ActionType::kNone;  // ACTION
  float value = 0;                        // ACTION: dwell seconds, rating, amount; finite
  uint64_t exposure_id = 0;               // ACTION: event_id of the exposure it answers, 0 = none
  std::vector<ContextField> context;      // <= 32
  std::vector<uint64_t> embedding_ids;    // optional modality embeddings, <= 16

  // Set by the store at commit, not by the client; not part of the canonical projection.
  int64_t ingest_time_us = 0;

  bool operator==(const Event&) const = default;
};

// Canonical order of a history.
inline bool CanonicalLess(const Event& a, const Event& b) {
  return std::tie(a.time_us, a.event_id) < std::tie(b.time_us, b.event_id);
}

// What a reader may see of a history. An event is visible if time_us < event_time_us and, where known_by_us is not
// kAnyIngestTime, ingest_time_us <= known_by_us. An event with time == event_time_us is invisible.
struct AsOf {
  static constexpr int64_t kAnyIngestTime = INT64_MAX;
  int64_t event_time_us = INT64_MAX;
  int64_t known_by_us = kAnyIngestTime;
  bool operator==(const AsOf&) const = default;
};

}  // namespace backstory

#endif  // BACKSTORY_FEATURES_EVENT_H_
