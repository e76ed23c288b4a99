// One slot as a byte stream: what ExportSlot writes and ImportSlot reads (store/FORMAT.md, "Slot stream").
#ifndef BACKSTORY_STORE_SLOT_STREAM_H_
#define BACKSTORY_STORE_SLOT_STREAM_H_

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "store/event_codec.h"
#include "store/history_store.h"
#include "store/user_record.h"

namespace backstory {

inline constexpr size_t kFrameBytesMax = size_t{4} << 20;

// Kinds of frames. Persisted.
enum class FrameKind : uint8_t {
  kBegin = 1,    // format version, slot
  kUser = 2,     // ns, user, aliases: the events that follow are this user's
  kEvents = 3,   // one event block
  kDeleted = 4,  // key and mark of a deleted user
  kSecrets = 5,  // what the keys of marks were made with
  kEnd = 6,      // number of frames before it
};

// A frame: kind byte, 4-byte length, payload, XXH3-64 of all that.
std::string MakeFrame(FrameKind kind, std::string_view payload);

// Cuts a chunked stream into frames. DATA_LOSS for a damaged or short stream.
class FrameReader {
 public:
  explicit FrameReader(std::function<absl::StatusOr<std::string>()> source) : source_(std::move(source)) {}
  struct Frame {
    FrameKind kind;
    std::string payload;
  };
  absl::StatusOr<Frame> Next();
  uint64_t frames() const { return frames_; }

 private:
  absl::Status Fill(size_t bytes);

  std::function<absl::StatusOr<std::string>()> source_;  // empty = the end
  std::string buffer_;
  size_t at_ = 0;
  uint64_t frames_ = 0;
};

}  // namespace backstory

#endif  // BACKSTORY_STORE_SLOT_STREAM_H_
