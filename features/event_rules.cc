#include "features/event_rules.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "features/hash.h"
#include "features/utf8.h"

namespace backstory {
namespace {

using L = EventLimits;

absl::Status Bad(const std::string& what) { return absl::InvalidArgumentError(what); }

// Equal in everything a client sets.
bool SameContent(const Event& a, const Event& b) {
  Event copy = b;
  copy.ingest_time_us = a.ingest_time_us;
  return a == copy;
}

class Bytes {
 public:
  void Number(uint64_t value) {
    for (int i = 0; i < 8; ++i) bytes_.push_back(static_cast<char>(value >> (8 * i)));
  }
  void Text(std::string_view text) {
    Number(text.size());
    bytes_.append(text);
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

}  // namespace

absl::Status CheckEventSizes(const Event& event) {
  if (!std::isfinite(event.value)) return Bad("value: must be finite");
  if (event.scene.size() > L::kSceneBytesMax) {
    return Bad(absl::StrCat("scene: ", event.scene.size(), " bytes, limit ", L::kSceneBytesMax));
  }
  if (event.context.size() > L::kContextMax) {
    return Bad(absl::StrCat("context: ", event.context.size(), " fields, limit ", L::kContextMax));
  }
  for (const ContextField& field : event.context) {
    if (field.name.empty() || field.name.size() > L::kContextNameBytesMax) {
      return Bad(
          absl::StrCat("context.name: ", field.name.size(), " bytes, 1 to ", L::kContextNameBytesMax, " needed"));
    }
    if (field.value.size() > L::kContextValueBytesMax) {
      return Bad(
          absl::StrCat("context.", field.name, ": ", field.value.size(), " bytes, limit ", L::kContextValueBytesMax));
    }
  }
  if (event.embedding_ids.size() > L::kEmbeddingsMax) {
    return Bad(absl::StrCat("embedding_ids: ", event.embedding_ids.size(), ", limit ", L::kEmbeddingsMax));
  }
  return absl::OkStatus();
}

absl::Status ValidateEvent(const Event& event) {
  if (event.kind != EventKind::kExposure && event.kind != EventKind::kAction)
    return Bad("kind: exposure or action needed");
  if (event.event_id == 0) return Bad("event_id: must not be 0");
  if (event.time_us < 0) return Bad(absl::StrCat("time_us: ", event.time_us, " is negative"));
  if (event.time_us > L::kTimeUsMax) return Bad(absl::StrCat("time_us: ", event.time_us, ", limit ", L::kTimeUsMax));
  if (event.kind == EventKind::kAction && event.action == ActionType::kNone)
    return Bad("action: an action needs a type");
  if (event.kind == EventKind::kExposure && event.action != ActionType::kNone) {
    return Bad("action: an exposure has none");
  }
  if (absl::Status status = CheckEventSizes(event); !status.ok()) return status;
  if (!IsUtf8(event.scene)) return Bad("scene: not UTF-8");
  for (const ContextField& field : event.context) {
    if (!IsUtf8(field.name) || !IsUtf8(field.value)) return Bad("context: not UTF-8");
  }
  return absl::OkStatus();
}

uint64_t DerivedEventId(const Event& event) {
  Bytes bytes;
  bytes.Number(static_cast<uint64_t>(event.kind));
  bytes.Number(static_cast<uint64_t>(event.time_us));
  bytes.Number(event.item_id);
  bytes.Number(event.request_id);
  bytes.Number(event.position);
  bytes.Text(event.scene);
  bytes.Number(static_cast<uint64_t>(event.action));
  bytes.Number(std::bit_cast<uint32_t>(event.value == 0 ? 0.0f : event.value));  // -0 and 0 are one value
  bytes.Number(event.exposure_id);
  bytes.Number(event.context.size());
  for (const ContextField& field : event.context) {
    bytes.Text(field.name);
    bytes.Text(field.value);
  }
  for (uint64_t id : event.embedding_ids) bytes.Number(id);
  const uint64_t hash = HashBytes(bytes.bytes(), 0);
  return hash == 0 ? 1 : hash;
}

CanonicalCounts CanonicalHistory(std::vector<Event>* events) {
  CanonicalCounts counts;
  // Highest revision first within an id; stable, so that of two equal revisions the first given leads.
  std::stable_sort(events->begin(), events->end(), [](const Event& a, const Event& b) {
    return a.event_id != b.event_id ? a.event_id < b.event_id : a.revision > b.revision;
  });
  size_t kept = 0;
  for (size_t i = 0; i < events->size();) {
    size_t end = i + 1;
    for (; end < events->size() && (*events)[end].event_id == (*events)[i].event_id; ++end) {
      const bool conflict =
          (*events)[end].revision == (*events)[i].revision && !SameContent((*events)[end], (*events)[i]);
      ++(conflict ? counts.conflicts : counts.duplicates);
    }
    if ((*events)[i].tombstone) {
      ++counts.tombstones;
    } else {
      if (kept != i) (*events)[kept] = std::move((*events)[i]);
      ++kept;
    }
    i = end;
  }
  events->resize(kept);
  std::sort(events->begin(), events->end(), CanonicalLess);
  return counts;
}

}  // namespace backstory
