#include "store/slots.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace backstory {

int SlotOf(std::string_view user) {
  const size_t open = user.find('{');
  if (open != std::string_view::npos) {
    const size_t close = user.find('}', open + 1);
    if (close != std::string_view::npos && close > open + 1) user = user.substr(open + 1, close - open - 1);
  }
  uint16_t crc = 0;  // CRC16/XMODEM: polynomial 0x1021, initial 0, not reflected
  for (const char c : user) {
    crc = static_cast<uint16_t>(crc ^ static_cast<uint16_t>(static_cast<uint8_t>(c) << 8));
    for (int bit = 0; bit < 8; ++bit) {
      crc = static_cast<uint16_t>((crc & 0x8000) != 0 ? (crc << 1) ^ 0x1021 : crc << 1);
    }
  }
  return crc % kSlotCount;
}

absl::StatusOr<SlotMap> SlotMap::Create(const std::string& self, const std::vector<SlotRange>& ranges) {
  SlotMap map;
  map.self_ = self;
  map.ranges_ = ranges;
  std::sort(map.ranges_.begin(), map.ranges_.end(),
            [](const SlotRange& a, const SlotRange& b) { return a.first < b.first; });
  int next = 0;
  for (const SlotRange& range : map.ranges_) {
    if (range.first < 0 || range.last >= kSlotCount || range.first > range.last) {
      return absl::InvalidArgumentError(absl::StrCat("slots: range ", range.first, "-", range.last, " of '",
                                                     range.owner, "' must lie within 0-", kSlotCount - 1));
    }
    if (range.first < next) {
      return absl::InvalidArgumentError(absl::StrCat("slots: slot ", range.first, " is given to two owners"));
    }
    next = range.last + 1;
  }
  return map;
}

absl::Status SlotMap::CheckOwned(int slot) const {
  if (ranges_.empty()) return absl::OkStatus();
  for (const SlotRange& range : ranges_) {
    if (slot < range.first || slot > range.last) continue;
    if (range.owner == self_) return absl::OkStatus();
    return absl::FailedPreconditionError(absl::StrCat("slot ", slot, " of this user is owned by '", range.owner,
                                                      "', not by this store ('", self_, "')"));
  }
  return absl::FailedPreconditionError(
      absl::StrCat("slot ", slot, " of this user has no owner in the slot map of this store ('", self_, "')"));
}

}  // namespace backstory
