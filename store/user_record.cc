#include "store/user_record.h"

#include "store/byte_io.h"

namespace backstory {
namespace {
constexpr uint8_t kRecordVersion = 1;
}  // namespace

std::string EncodeUserRecord(const UserRecord& r) {
  std::string out;
  out.push_back(static_cast<char>(kRecordVersion));
  PutBytes(&out, r.user.ns);
  PutBytes(&out, r.user.user);
  PutBytes(&out, r.alias_of);
  PutFixed64(&out, r.head.hash);
  for (const uint64_t v : {r.head.seq, r.head.epoch, r.head.events, ZigZag(r.head.newest_us),
                           static_cast<uint64_t>(r.head.first_index), r.stored, r.epoch_seq, r.retain_seq, r.merged_seq,
                           uint64_t{r.tail_events}, uint64_t{r.tail_records}, static_cast<uint64_t>(r.floor.time_us),
                           r.floor.event_id, ZigZag(r.refuse_until_us), static_cast<uint64_t>(r.aliases.size())}) {
    PutVarint(&out, v);
  }
  for (const std::string& alias : r.aliases) PutBytes(&out, alias);
  return out;
}

bool DecodeUserRecord(std::string_view bytes, UserRecord* r) {
  ByteReader reader(bytes);
  uint8_t version = 0;
  std::string_view ns, user, alias_of;
  if (!reader.ReadByte(&version) || version != kRecordVersion) return false;
  if (!reader.ReadBytes(&ns) || !reader.ReadBytes(&user) || !reader.ReadBytes(&alias_of)) return false;
  *r = UserRecord();
  r->user = {std::string(ns), std::string(user)};
  r->alias_of = alias_of;
  uint64_t newest = 0, first_index = 0, tail_events = 0, tail_records = 0, floor_time = 0, refuse = 0, aliases = 0;
  if (!reader.ReadFixed64(&r->head.hash)) return false;
  for (uint64_t* v :
       {&r->head.seq, &r->head.epoch, &r->head.events, &newest, &first_index, &r->stored, &r->epoch_seq, &r->retain_seq,
        &r->merged_seq, &tail_events, &tail_records, &floor_time, &r->floor.event_id, &refuse, &aliases}) {
    if (!reader.ReadVarint(v)) return false;
  }
  r->head.newest_us = UnZigZag(newest);
  r->head.first_index = static_cast<int64_t>(first_index);
  r->tail_events = static_cast<uint32_t>(tail_events);
  r->tail_records = static_cast<uint32_t>(tail_records);
  r->floor.time_us = static_cast<int64_t>(floor_time);
  r->refuse_until_us = UnZigZag(refuse);
  if (aliases > reader.remaining()) return false;
  for (uint64_t i = 0; i < aliases; ++i) {
    std::string_view alias;
    if (!reader.ReadBytes(&alias)) return false;
    r->aliases.emplace_back(alias);
  }
  return reader.remaining() == 0;
}

std::string EncodeDeletedUser(const DeletedUser& deleted) {
  std::string out;
  out.push_back(static_cast<char>(kRecordVersion));
  PutVarint(&out, static_cast<uint64_t>(deleted.deleted_us));
  PutVarint(&out, deleted.seq);
  PutVarint(&out, deleted.epoch);
  return out;
}

bool DecodeDeletedUser(std::string_view bytes, DeletedUser* deleted) {
  ByteReader reader(bytes);
  uint8_t version = 0;
  uint64_t when = 0;
  if (!reader.ReadByte(&version) || version != kRecordVersion || !reader.ReadVarint(&when)) return false;
  deleted->deleted_us = static_cast<int64_t>(when);
  return reader.ReadVarint(&deleted->seq) && reader.ReadVarint(&deleted->epoch) && reader.remaining() == 0;
}

}  // namespace backstory
