// Arbitrary bytes as a safetensors file: parsed or refused, never read beyond, never trusted.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "models/safetensors.h"
#include "models/tensor_map.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // Memory of exactly this size, so that the sanitizer sees one byte too far; offset by one in half of the cases, so
  // that nothing relies on alignment.
  const size_t shift = size % 2;
  std::shared_ptr<uint8_t> block(new uint8_t[size + shift], std::default_delete<uint8_t[]>());
  if (size > 0) std::memcpy(block.get() + shift, data, size);
  std::shared_ptr<const uint8_t> bytes(block, block.get() + shift);
  const auto file = backstory::SafetensorsFile::Parse(bytes, size, "fuzz");
  if (!file.ok()) {
    if (file.status().code() != absl::StatusCode::kDataLoss) std::abort();
    return 0;
  }
  uint64_t sum = 0, covered = 0;
  for (const backstory::SafetensorsEntry& entry : file->entries()) {
    for (uint8_t byte : file->Bytes(entry)) sum += byte;
    covered += entry.end - entry.begin;
    if (file->Find(entry.name) != &entry) std::abort();
    (void)file->Read<double>(entry.name);
    (void)file->Read<int64_t>(entry.name);
    (void)file->Read<uint8_t>(entry.name);
  }
  if (covered > size) std::abort();
  backstory::TensorMap map;
  const absl::Status added = file->AddTo(&map);
  if (added.ok() && map.size() != file->entries().size()) std::abort();
  return sum == UINT64_MAX ? 1 : 0;
}
