#include "serving/rpc/wire.h"

#include <cmath>

#include "absl/strings/str_cat.h"

namespace backstory::rpc {
namespace {

// std::string_view is not absl's here (Debian builds Abseil with its own types).
absl::string_view A(std::string_view s) { return {s.data(), s.size()}; }
std::string At(std::string_view field, std::string_view member) { return absl::StrCat(A(field), ".", A(member)); }
std::string At(std::string_view field, std::string_view member, int index) {
  return absl::StrCat(A(field), ".", A(member), "[", index, "]");
}

absl::Status CheckContext(std::string_view field, const v1::Event& event, Event* out) {
  if (auto s = CheckCount(At(field, "context"), event.context_size(), 0, kContextFieldsMax); !s.ok()) return s;
  for (int i = 0; i < event.context_size(); ++i) {
    const auto& context = event.context(i);
    if (auto s = CheckBytes(At(field, "context", i) + ".name", context.name(), 1, kNameBytesMax); !s.ok()) return s;
    if (auto s = CheckBytes(At(field, "context", i) + ".value", context.value(), 0, kValueBytesMax); !s.ok()) return s;
    out->context.push_back({context.name(), context.value()});
  }
  return absl::OkStatus();
}

absl::Status CheckKind(std::string_view field, const v1::Event& event, Event* out) {
  switch (event.kind()) {
    case v1::EVENT_KIND_EXPOSURE:
      out->kind = EventKind::kExposure;
      if (event.action() != 0) return BadField(At(field, "action"), "must be 0 on an EXPOSURE");
      return absl::OkStatus();
    case v1::EVENT_KIND_ACTION:
      out->kind = EventKind::kAction;
      if (event.action() == 0 || event.action() > 65535) {
        return BadField(At(field, "action"), absl::StrCat("must be 1..65535 on an ACTION, is ", event.action()));
      }
      out->action = static_cast<ActionType>(event.action());
      return absl::OkStatus();
    default:
      return BadField(At(field, "kind"), "must be EVENT_KIND_EXPOSURE or EVENT_KIND_ACTION");
  }
}

}  // namespace

absl::Status BadField(std::string_view field, std::string_view reason) {
  return absl::InvalidArgumentError(absl::StrCat(A(field), " ", A(reason)));
}

absl::Status CheckBytes(std::string_view field, std::string_view value, size_t min_bytes, size_t max_bytes) {
  if (value.size() >= min_bytes && value.size() <= max_bytes) return absl::OkStatus();
  return BadField(field, absl::StrCat("must have ", min_bytes, "..", max_bytes, " bytes, has ", value.size()));
}

absl::Status CheckTime(std::string_view field, int64_t time_us) {
  if (time_us >= 0) return absl::OkStatus();
  return BadField(field, absl::StrCat("must be >= 0 microseconds, is ", time_us));
}

absl::Status CheckFinite(std::string_view field, double value) {
  if (std::isfinite(value)) return absl::OkStatus();
  return BadField(field, std::isnan(value) ? "must be finite, is NaN" : "must be finite, is infinite");
}

absl::Status CheckCount(std::string_view field, uint64_t count, uint64_t min_count, uint64_t max_count) {
  if (count >= min_count && count <= max_count) return absl::OkStatus();
  return BadField(field, absl::StrCat("must have ", min_count, "..", max_count, " entries, has ", count));
}

absl::StatusOr<std::string> NamespaceFromWire(const std::string& ns) {
  if (ns.empty()) return std::string("default");
  bool good = ns.size() <= kNameBytesMax;
  for (char c : ns) good = good && ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-');
  if (!good) return BadField("namespace", "must match [a-z0-9_-]{1,64}");
  return ns;
}

absl::StatusOr<std::string> UserFromWire(std::string_view field, const v1::UserRef& user) {
  switch (user.id_case()) {
    case v1::UserRef::kUserId:
      return absl::StrCat(user.user_id());
    case v1::UserRef::kUser: {
      auto s = CheckBytes(At(field, "user"), user.user(), 1, kUserBytesMax);
      if (!s.ok()) return s;
      return user.user();
    }
    default:
      return BadField(field, "must name a user: set user (1..256 bytes) or user_id");
  }
}

absl::StatusOr<UserKey> UserKeyFromWire(const std::string& ns, std::string_view field, const v1::UserRef& user) {
  auto checked = NamespaceFromWire(ns);
  if (!checked.ok()) return checked.status();
  auto id = UserFromWire(field, user);
  if (!id.ok()) return id.status();
  return UserKey{*std::move(checked), *std::move(id)};
}

absl::StatusOr<AsOf> AsOfFromWire(const v1::AsOf& as_of) {
  AsOf out;
  if (as_of.has_event_time_us()) {
    if (auto s = CheckTime("as_of.event_time_us", as_of.event_time_us()); !s.ok()) return s;
    out.event_time_us = as_of.event_time_us();
  }
  if (as_of.has_known_by_us()) {
    if (auto s = CheckTime("as_of.known_by_us", as_of.known_by_us()); !s.ok()) return s;
    out.known_by_us = as_of.known_by_us();
  }
  return out;
}

absl::StatusOr<Event> EventFromWire(std::string_view field, const v1::Event& event, int64_t now_us) {
  Event out;
  if (auto s = CheckKind(field, event, &out); !s.ok()) return s;
  if (event.event_id() == 0) return BadField(At(field, "event_id"), "must be nonzero");
  if (auto s = CheckTime(At(field, "time_us"), event.time_us()); !s.ok()) return s;
  if (event.time_us() > now_us + kFutureMaxUs) {
    return BadField(At(field, "time_us"), absl::StrCat("must be at most 24 h after the server's clock, is ",
                                                       event.time_us(), " at ", now_us));
  }
  if (auto s = CheckBytes(At(field, "scene"), event.scene(), 0, kNameBytesMax); !s.ok()) return s;
  if (auto s = CheckFinite(At(field, "value"), event.value()); !s.ok()) return s;
  if (auto s = CheckContext(field, event, &out); !s.ok()) return s;
  if (auto s = CheckCount(At(field, "embedding_ids"), event.embedding_ids_size(), 0, kEmbeddingIdsMax); !s.ok())
    return s;
  if (event.ingest_time_us() != 0) return BadField(At(field, "ingest_time_us"), "is output only and must be 0");
  out.event_id = event.event_id();
  out.revision = event.revision();
  out.tombstone = event.tombstone();
  out.time_us = event.time_us();
  out.item_id = event.item_id();
  out.request_id = event.request_id();
  out.position = event.position();
  out.scene = event.scene();
  out.value = event.value();
  out.exposure_id = event.exposure_id();
  out.embedding_ids.assign(event.embedding_ids().begin(), event.embedding_ids().end());
  return out;
}

void EventToWire(const Event& event, v1::Event* out) {
  out->set_kind(event.kind == EventKind::kExposure ? v1::EVENT_KIND_EXPOSURE : v1::EVENT_KIND_ACTION);
  out->set_event_id(event.event_id);
  out->set_revision(event.revision);
  out->set_tombstone(event.tombstone);
  out->set_time_us(event.time_us);
  out->set_item_id(event.item_id);
  out->set_request_id(event.request_id);
  out->set_position(event.position);
  out->set_scene(event.scene);
  out->set_action(static_cast<uint32_t>(event.action));
  out->set_value(event.value);
  out->set_exposure_id(event.exposure_id);
  for (const ContextField& context : event.context) {
    auto* field = out->add_context();
    field->set_name(context.name);
    field->set_value(context.value);
  }
  out->mutable_embedding_ids()->Assign(event.embedding_ids.begin(), event.embedding_ids.end());
  out->set_ingest_time_us(event.ingest_time_us);
}

void HeadToWire(const UserHead& head, v1::UserHead* out) {
  out->set_seq(head.seq);
  out->set_epoch(head.epoch);
  out->set_hash(head.hash);
  out->set_events(head.events);
  out->set_newest_us(head.newest_us);
  out->set_first_index(head.first_index);
}

absl::StatusOr<Item> ItemFromWire(std::string_view field, const v1::Item& item) {
  Item out;
  out.item_id = item.item_id();
  if (auto s = CheckCount(At(field, "categories"), item.categories_size(), 0, kCategoriesMax); !s.ok()) return s;
  for (int i = 0; i < item.categories_size(); ++i) {
    if (auto s = CheckBytes(At(field, "categories", i), item.categories(i), 1, kNameBytesMax); !s.ok()) return s;
  }
  if (auto s = CheckCount(At(field, "sid"), item.sid_size(), 0, kSidLevelsMax); !s.ok()) return s;
  if (auto s = CheckCount(At(field, "embedding"), item.embedding_size(), 0, kEmbeddingMax); !s.ok()) return s;
  for (int i = 0; i < item.embedding_size(); ++i) {
    if (!std::isfinite(item.embedding(i))) return BadField(At(field, "embedding", i), "must be finite");
  }
  if (auto s = CheckBytes(At(field, "embedding_space"), item.embedding_space(), 0, kEmbeddingSpaceBytesMax); !s.ok()) {
    return s;
  }
  if (item.embedding_size() == 0 && !item.embedding_space().empty()) {
    return BadField(At(field, "embedding_space"), "is given without an embedding");
  }
  if (auto s = CheckBytes(At(field, "title"), item.title(), 0, kTitleBytesMax); !s.ok()) return s;
  if (auto s = CheckBytes(At(field, "text"), item.text(), 0, kTextBytesMax); !s.ok()) return s;
  if (auto s = CheckCount(At(field, "numbers"), item.numbers_size(), 0, kItemMapEntriesMax); !s.ok()) return s;
  for (const auto& [name, number] : item.numbers()) {
    if (auto s = CheckBytes(At(field, "numbers") + " name", name, 1, kNameBytesMax); !s.ok()) return s;
    if (auto s = CheckFinite(absl::StrCat(At(field, "numbers"), "[\"", name, "\"]"), number); !s.ok()) return s;
    out.numbers[name] = number;
  }
  if (auto s = CheckCount(At(field, "strings"), item.strings_size(), 0, kItemMapEntriesMax); !s.ok()) return s;
  for (const auto& [name, text] : item.strings()) {
    if (auto s = CheckBytes(At(field, "strings") + " name", name, 1, kNameBytesMax); !s.ok()) return s;
    if (auto s = CheckBytes(absl::StrCat(At(field, "strings"), "[\"", name, "\"]"), text, 0, kValueBytesMax); !s.ok()) {
      return s;
    }
    out.strings[name] = text;
  }
  out.categories.assign(item.categories().begin(), item.categories().end());
  out.sid.assign(item.sid().begin(), item.sid().end());
  out.year = item.year();
  out.embedding.assign(item.embedding().begin(), item.embedding().end());
  out.embedding_space = item.embedding_space();
  out.title = item.title();
  out.text = item.text();
  return out;
}

void ItemToWire(const Item& item, v1::Item* out) {
  out->set_item_id(item.item_id);
  for (const auto& category : item.categories) out->add_categories(category);
  out->mutable_sid()->Assign(item.sid.begin(), item.sid.end());
  out->set_year(item.year);
  out->mutable_embedding()->Assign(item.embedding.begin(), item.embedding.end());
  out->set_embedding_space(item.embedding_space);
  out->set_title(item.title);
  out->set_text(item.text);
  for (const auto& [name, number] : item.numbers) (*out->mutable_numbers())[name] = number;
  for (const auto& [name, text] : item.strings) (*out->mutable_strings())[name] = text;
}

absl::StatusOr<Durability> DurabilityFromWire(v1::Durability durability) {
  switch (durability) {
    case v1::DURABILITY_UNSPECIFIED:
    case v1::DURABILITY_SYNCED:
      return Durability::kSynced;
    case v1::DURABILITY_BUFFERED:
      return Durability::kBuffered;
    default:
      return BadField("durability", "must be DURABILITY_SYNCED or DURABILITY_BUFFERED");
  }
}

absl::StatusOr<DeleteSelector> SelectorFromWire(const v1::DeleteRequest& request) {
  const int selectors =
      int{request.all()} + int{request.event_ids_size() > 0} + int{request.has_range()} + int{request.has_item_id()};
  if (selectors != 1) {
    return BadField("all, event_ids, range, item_id:",
                    absl::StrCat("exactly one selector must be set, ", selectors, " are"));
  }
  DeleteSelector out;
  out.all = request.all();
  if (auto s = CheckCount("event_ids", request.event_ids_size(), 0, kEventsPerBatchMax); !s.ok()) return s;
  out.event_ids.assign(request.event_ids().begin(), request.event_ids().end());
  if (request.has_range()) {
    if (auto s = CheckTime("range.from_us", request.range().from_us()); !s.ok()) return s;
    if (request.range().until_us() <= request.range().from_us()) {
      return BadField("range.until_us", absl::StrCat("must be > range.from_us, is ", request.range().until_us()));
    }
    out.from_us = request.range().from_us();
    out.until_us = request.range().until_us();
  }
  out.has_item = request.has_item_id();
  out.item_id = request.item_id();
  return out;
}

absl::StatusOr<HistoryRange> RangeFromWire(const v1::GetHistoryRequest& request) {
  HistoryRange out;
  auto as_of = AsOfFromWire(request.as_of());
  if (!as_of.ok()) return as_of.status();
  out.as_of = *as_of;
  if (auto s = CheckTime("from_us", request.from_us()); !s.ok()) return s;
  out.from_us = request.from_us();
  if (request.newest() > kHistoryReadMax) {
    return BadField("newest", absl::StrCat("must be <= ", kHistoryReadMax, ", is ", request.newest()));
  }
  out.newest = request.newest() == 0 ? kHistoryReadDefault : request.newest();
  out.include_tombstones = request.include_tombstones();
  return out;
}

void AppendResultToWire(const AppendResult& result, const std::vector<uint64_t>& event_ids, v1::AppendResponse* out) {
  uint32_t duplicate = 0;  // a stale revision counts as one: it is older news
  for (size_t i = 0; i < result.outcomes.size(); ++i) {
    const EventOutcome outcome = result.outcomes[i];
    duplicate += outcome == EventOutcome::kDuplicate || outcome == EventOutcome::kStale ? 1 : 0;
    if (outcome != EventOutcome::kConflict && outcome != EventOutcome::kRejected) continue;
    auto* refusal = out->add_refusals();
    refusal->set_index(static_cast<uint32_t>(i));
    refusal->set_event_id(i < event_ids.size() ? event_ids[i] : 0);
    refusal->set_conflict(outcome == EventOutcome::kConflict);
    if (i < result.reasons.size()) refusal->set_reason(result.reasons[i]);
  }
  out->set_accepted(result.accepted);
  out->set_duplicate(duplicate);
  out->set_conflict(result.conflict);
  out->set_late(result.late);
  out->set_rejected(result.rejected);
  out->set_seq(result.seq);
}

}  // namespace backstory::rpc
