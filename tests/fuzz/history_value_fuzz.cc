// libFuzzer program: history_value_fuzz tests/fuzz/corpus/history_value
#include <cstddef>
#include <cstdint>

#include "tests/fuzz/store_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  backstory::FuzzHistoryValue({reinterpret_cast<const char*>(data), size});
  return 0;
}
