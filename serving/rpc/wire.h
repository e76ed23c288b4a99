// Wire messages <-> the house's structs, with validation at the border. Pure functions: no gRPC, no clock, no state.
// Every refusal is INVALID_ARGUMENT naming the field (as a path into the message) and the limit; nothing is clamped.
#ifndef BACKSTORY_SERVING_RPC_WIRE_H_
#define BACKSTORY_SERVING_RPC_WIRE_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "backstory/v1/catalog.pb.h"
#include "backstory/v1/common.pb.h"
#include "backstory/v1/history.pb.h"
#include "features/event.h"
#include "features/item.h"
#include "store/history_store.h"

namespace backstory::rpc {

// Limits of the wire API (docs/reference/api.md). Frozen: raising one is compatible, lowering one is not.
inline constexpr int kEventsPerBatchMax = 10'000;
inline constexpr int kUsersPerBatchMax = 10'000;
inline constexpr int kItemsPerCallMax = 10'000;
inline constexpr uint64_t kHistoryReadMax = 100'000;
inline constexpr uint64_t kHistoryReadDefault = 1'000;
inline constexpr size_t kNameBytesMax = 64;
inline constexpr size_t kValueBytesMax = 256;
inline constexpr size_t kUserBytesMax = 256;
inline constexpr size_t kTitleBytesMax = 512;
inline constexpr size_t kTextBytesMax = 8'192;
inline constexpr int kContextFieldsMax = 32;
inline constexpr int kEmbeddingIdsMax = 16;
inline constexpr int kItemMapEntriesMax = 64;
inline constexpr int kCategoriesMax = 64;
inline constexpr int kSidLevelsMax = 16;
inline constexpr int kEmbeddingMax = 4'096;
inline constexpr int kEmbeddingSpaceBytesMax = 64;
inline constexpr int64_t kFutureMaxUs = int64_t{24} * 3600 * 1'000'000;

// INVALID_ARGUMENT "<field> <what is wrong, with the limit>".
absl::Status BadField(std::string_view field, std::string_view reason);
absl::Status CheckBytes(std::string_view field, std::string_view value, size_t min_bytes, size_t max_bytes);
absl::Status CheckTime(std::string_view field, int64_t time_us);
absl::Status CheckFinite(std::string_view field, double value);
absl::Status CheckCount(std::string_view field, uint64_t count, uint64_t min_count, uint64_t max_count);

// "" -> "default"; else [a-z0-9_-]{1,64}.
absl::StatusOr<std::string> NamespaceFromWire(const std::string& ns);
absl::StatusOr<std::string> UserFromWire(std::string_view field, const v1::UserRef& user);
absl::StatusOr<UserKey> UserKeyFromWire(const std::string& ns, std::string_view field, const v1::UserRef& user);
absl::StatusOr<AsOf> AsOfFromWire(const v1::AsOf& as_of);

// `field` is the path of the event in its request, e.g. "events[3]". `now_us` bounds how far in the future it may lie.
absl::StatusOr<Event> EventFromWire(std::string_view field, const v1::Event& event, int64_t now_us);
void EventToWire(const Event& event, v1::Event* out);
void HeadToWire(const UserHead& head, v1::UserHead* out);

absl::StatusOr<Item> ItemFromWire(std::string_view field, const v1::Item& item);
void ItemToWire(const Item& item, v1::Item* out);

absl::StatusOr<Durability> DurabilityFromWire(v1::Durability durability);
absl::StatusOr<DeleteSelector> SelectorFromWire(const v1::DeleteRequest& request);
absl::StatusOr<HistoryRange> RangeFromWire(const v1::GetHistoryRequest& request);

// Counts, and refusals with their reasons; outcomes[i] belongs to ids[i].
void AppendResultToWire(const AppendResult& result, const std::vector<uint64_t>& event_ids, v1::AppendResponse* out);

}  // namespace backstory::rpc

#endif  // BACKSTORY_SERVING_RPC_WIRE_H_
