// C symbols of the kernels around attention for layer_bench.py.
#include <cstddef>

#include "kernels/cuda/layer.h"

extern "C" {

size_t bench_project_bytes() { return sizeof(backstory::cuda::ProjectArgs); }
size_t bench_finish_bytes() { return sizeof(backstory::cuda::FinishArgs); }
const char* bench_project(const backstory::cuda::ProjectArgs* args, void* stream) {
  return backstory::cuda::Project(*args, stream);
}
const char* bench_head(const backstory::cuda::HeadArgs* args, void* stream) {
  return backstory::cuda::Head(*args, stream);
}
const char* bench_finish(const backstory::cuda::FinishArgs* args, void* stream) {
  return backstory::cuda::Finish(*args, stream);
}

}  // extern "C"
