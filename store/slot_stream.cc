#include "store/slot_stream.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "absl/strings/str_cat.h"
#include "store/byte_io.h"

namespace backstory {
namespace {
constexpr size_t kFrameHead = 5, kFrameFoot = 8;
}  // namespace

std::string MakeFrame(FrameKind kind, std::string_view payload) {
  std::string frame;
  frame.reserve(kFrameHead + payload.size() + kFrameFoot);
  frame.push_back(static_cast<char>(kind));
  PutFixed32(&frame, static_cast<uint32_t>(payload.size()));
  frame += payload;
  PutFixed64(&frame, XXH3_64bits(frame.data(), frame.size()));
  return frame;
}

absl::Status FrameReader::Fill(size_t bytes) {
  while (buffer_.size() - at_ < bytes) {
    absl::StatusOr<std::string> chunk = source_();
    if (!chunk.ok()) return chunk.status();
    if (chunk->empty()) return absl::DataLossError(absl::StrCat("slot stream ends early, after ", frames_, " frames"));
    buffer_.erase(0, at_);
    at_ = 0;
    buffer_ += *chunk;
  }
  return absl::OkStatus();
}

absl::StatusOr<FrameReader::Frame> FrameReader::Next() {
  if (absl::Status status = Fill(kFrameHead); !status.ok()) return status;
  uint32_t size = 0;
  std::memcpy(&size, buffer_.data() + at_ + 1, sizeof(size));
  if (size > kFrameBytesMax) return absl::DataLossError(absl::StrCat("slot stream: frame ", frames_, " is damaged"));
  if (absl::Status status = Fill(kFrameHead + size + kFrameFoot); !status.ok()) return status;
  uint64_t hash = 0;
  std::memcpy(&hash, buffer_.data() + at_ + kFrameHead + size, sizeof(hash));
  if (hash != XXH3_64bits(buffer_.data() + at_, kFrameHead + size)) {
    return absl::DataLossError(absl::StrCat("slot stream: frame ", frames_, " is damaged"));
  }
  Frame frame{static_cast<FrameKind>(buffer_[at_]), buffer_.substr(at_ + kFrameHead, size)};
  at_ += kFrameHead + size + kFrameFoot;
  ++frames_;
  return frame;
}

}  // namespace backstory
