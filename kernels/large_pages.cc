#include "kernels/large_pages.h"

#include <cstdint>
#include <map>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#include <sys/mman.h>
#define BACKSTORY_CHUNKS 1
#endif

namespace backstory {
namespace {

constexpr std::align_val_t kAlignment{64};

#ifdef BACKSTORY_CHUNKS

constexpr size_t kChunk = size_t{2} << 20, kLeast = size_t{16} << 10, kMost = size_t{1} << 20;

size_t Padded(size_t bytes) { return (bytes + 63) / 64 * 64; }

// kChunk bytes at a multiple of kChunk.
char* MapChunk() {
  void* mapped = mmap(nullptr, 2 * kChunk, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  char* const begin = static_cast<char*>(mapped);
  const size_t before = (kChunk - reinterpret_cast<uintptr_t>(begin) % kChunk) % kChunk;
  if (before > 0) munmap(begin, before);
  munmap(begin + before + kChunk, kChunk - before);
  madvise(begin + before, kChunk, MADV_HUGEPAGE);  // a wish: without it everything works, more slowly
  return begin + before;
}

// Pieces of one size.
class Pieces {
 public:
  void* Take(size_t bytes) {
    if (open_.empty()) {
      char* const chunk = MapChunk();
      Chunk& fresh = chunks_[chunk];
      for (size_t i = kChunk / bytes; i > 0; --i) fresh.free.push_back(chunk + (i - 1) * bytes);
      fresh.pieces = fresh.free.size();
      open_[chunk] = &fresh;
      ++empty_;
    }
    // The lowest chunk with room: the others have a chance to run empty.
    const auto [begin, chunk] = *open_.begin();
    if (chunk->free.size() == chunk->pieces) --empty_;
    char* const piece = chunk->free.back();
    chunk->free.pop_back();
    if (chunk->free.empty()) open_.erase(begin);
    return piece;
  }

  void Give(char* piece) {
    char* const begin = piece - reinterpret_cast<uintptr_t>(piece) % kChunk;
    Chunk& chunk = chunks_.at(begin);
    chunk.free.push_back(piece);
    open_[begin] = &chunk;
    if (chunk.free.size() < chunk.pieces || ++empty_ == 1) return;
    --empty_;
    open_.erase(begin);
    chunks_.erase(begin);
    munmap(begin, kChunk);
  }

 private:
  struct Chunk {
    size_t pieces = 0;
    std::vector<char*> free;
  };
  std::map<char*, Chunk> chunks_;
  std::map<char*, Chunk*> open_;  // those with a free piece
  size_t empty_ = 0;              // chunks without a used piece
};

class Sizes {
 public:
  void* Take(size_t bytes) {
    std::lock_guard lock(mutex_);
    return sizes_[bytes].Take(bytes);
  }
  void Give(void* piece, size_t bytes) {
    std::lock_guard lock(mutex_);
    sizes_.at(bytes).Give(static_cast<char*>(piece));
  }

 private:
  std::mutex mutex_;
  std::map<size_t, Pieces> sizes_;  // guarded by mutex_
};

// Never destroyed: static objects may free their arrays later.
Sizes& TheSizes() {
  static Sizes* const sizes = new Sizes;
  return *sizes;
}

bool Shares(size_t bytes) { return bytes >= kLeast && bytes <= kMost; }

#endif

}  // namespace

void* AllocateAligned(size_t bytes) {
#ifdef BACKSTORY_CHUNKS
  if (Shares(Padded(bytes))) return TheSizes().Take(Padded(bytes));
#endif
  return ::operator new(bytes, kAlignment);
}

void FreeAligned(void* memory, [[maybe_unused]] size_t bytes) {
  if (memory == nullptr) return;
#ifdef BACKSTORY_CHUNKS
  if (Shares(Padded(bytes))) return TheSizes().Give(memory, Padded(bytes));
#endif
  ::operator delete(memory, kAlignment);
}

}  // namespace backstory
