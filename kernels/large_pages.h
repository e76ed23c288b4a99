// Memory for K/V pages and packed weights, on the machine's large pages where it grants them: a pass over a long
// history otherwise misses the TLB with every 4 KiB (3 to 5 % of scoring 4,096 rows).
#ifndef BACKSTORY_KERNELS_LARGE_PAGES_H_
#define BACKSTORY_KERNELS_LARGE_PAGES_H_

#include <cstddef>

namespace backstory {

// 64-byte aligned, uninitialised; throws std::bad_alloc as operator new does. Pieces of 16 KiB to 1 MiB share 2 MiB
// chunks with pieces of their size, and a chunk goes back to the system when its last piece is freed (one empty chunk
// of a size is kept). Lost are what is left over at the end of every chunk and, after many pieces were freed, what is
// free in chunks that still hold one: resident memory can stay above what is in use. Other sizes, sanitizer
// builds and systems other than Linux use operator new. Thread-safe.
void* AllocateAligned(size_t bytes);
// Of AllocateAligned, with the same size. May be nullptr.
void FreeAligned(void* memory, size_t bytes);

}  // namespace backstory

#endif  // BACKSTORY_KERNELS_LARGE_PAGES_H_
