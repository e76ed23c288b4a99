// libFuzzer program: integrity_fuzz tests/fuzz/corpus/integrity
#include <cstddef>
#include <cstdint>

#include "tests/fuzz/store_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  backstory::FuzzIntegrity({reinterpret_cast<const char*>(data), size});
  return 0;
}
