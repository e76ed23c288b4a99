// A whole file as read-only memory. Private to models.
#ifndef BACKSTORY_MODELS_MAPPED_FILE_H_
#define BACKSTORY_MODELS_MAPPED_FILE_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace backstory {

// The bytes live as long as any copy of `owner`. They are the file's pages: a file that is changed in place changes
// here too, and one that is cut short makes reads fault. Whatever is mapped must be immutable, as versions are.
struct MappedFile {
  std::shared_ptr<const uint8_t> owner;  // nullptr for an empty file
  size_t size = 0;
  std::span<const uint8_t> bytes() const { return {owner.get(), size}; }
  std::string_view text() const { return {reinterpret_cast<const char*>(owner.get()), size}; }
};

// Regular files only, the last path component no symlink. NOT_FOUND, PERMISSION_DENIED, INVALID_ARGUMENT (no regular
// file) or UNAVAILABLE, with the path.
absl::StatusOr<MappedFile> MapFile(const std::string& path);

// Replaces `path` by write, fsync, rename, fsync of the folder: after a crash it holds the old content or the new.
// RESOURCE_EXHAUSTED when the disk is full, UNAVAILABLE otherwise, with the path.
absl::Status WriteFileAtomically(const std::string& path, std::span<const std::string_view> pieces);
absl::Status WriteFileAtomically(const std::string& path, std::string_view content);

}  // namespace backstory

#endif  // BACKSTORY_MODELS_MAPPED_FILE_H_
