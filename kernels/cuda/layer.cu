#include "kernels/cuda/layer.h"

#include "kernels/cuda/finish.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/project.cuh"

namespace backstory::cuda {
namespace {

// Matrices [count][rows][columns] of bf16, in boxes of 64 columns x `box_rows` rows.
bool EncodeMatrices(CUtensorMap* map, const void* base, int count, int rows, int columns, int box_rows) {
  const auto u = [](int x) { return static_cast<cuuint64_t>(x); };
  return Encode<3>(map, base, {u(columns), u(rows), u(count)}, {columns, int64_t{rows} * columns},
                   {64, static_cast<cuuint32_t>(box_rows), 1});
}

template <typename Kernel, typename Args, typename Maps>
const char* Launch(Kernel kernel, dim3 grid, int threads, int shared, int cluster, const Args& args, const Maps& maps,
                   void* stream) {
  static std::atomic<uint64_t> allowed = 0;
  cudaError_t refused = Allow(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared, &allowed);
  if (refused == cudaSuccess && cluster > 8) {  // more than every card of the architecture promises
    static std::atomic<uint64_t> large = 0;
    refused = Allow(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1, &large);
  }
  if (refused != cudaSuccess) return cudaGetErrorString(refused);
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchAttribute attributes[2] = {};
  if (cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  }
  if (args.overlap_previous) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  config.attrs = attributes;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, args, maps);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

constexpr char kNoDriver[] = "layer: the driver has no cuTensorMapEncodeTiled (older than CUDA 12)";
constexpr char kBadMaps[] = "layer: the driver refuses the tensor maps (16-byte aligned bases?)";

}  // namespace

bool ProjectFits(int in, int out, int bias_out) {
  return in == ProjectTile::kIn && out > 0 && out % ProjectTile::kFeatures == 0 && bias_out >= 0 && bias_out % 64 == 0;
}

const char* Project(const ProjectArgs& a, void* stream) {
  if (!ProjectFits(a.in, a.out, a.bias_out)) return "project: no kernel for these widths";
  if (a.rows < 1 || a.rows % 4 != 0 || a.channels < 1) return "project: rows must be a multiple of 4, > 0";
  if (FindEncode() == nullptr) return kNoDriver;
  using Tile = ProjectTile;
  ProjectMaps maps;
  bool encoded = EncodeMatrices(&maps.z, a.z, a.channels, a.rows, a.in, Tile::kRows) &&
                 EncodeMatrices(&maps.w, a.w, a.channels, a.out, a.in, Tile::kFeatures);
  if (a.bias_out > 0) {
    encoded = encoded && EncodeMatrices(&maps.w_bias, a.w_bias, a.channels, a.bias_out, a.in, Tile::kFeatures);
  }
  if (!encoded) return kBadMaps;
  const dim3 grid(a.out / Tile::kFeatures + (a.bias_out + Tile::kFeatures - 1) / Tile::kFeatures,
                  (a.rows + Tile::kRows - 1) / Tile::kRows, a.channels);
  return Launch(ProjectKernel, grid, Tile::kThreads, sizeof(ProjectShared), 1, a, maps, stream);
}

bool FinishFits(int channels, int d, int wide, int ffn) {
  using Tile = FinishTile;
  return (channels == 1 || channels == 2) && d == Tile::kD && wide == Tile::kWide && ffn == Tile::kFfn;
}

const char* Finish(const FinishArgs& a, void* stream) {
  using Tile = FinishTile;
  if (!FinishFits(a.channels, a.d, a.wide, a.ffn)) return "finish: no kernel for these widths";
  if (a.rows < 1) return "finish: no rows";
  if (FindEncode() == nullptr) return kNoDriver;
  FinishMaps maps;
  const bool encoded = EncodeMatrices(&maps.attended, a.attended, a.channels, a.rows, a.wide, Tile::kRows) &&
                       EncodeMatrices(&maps.w_o, a.w_o, a.channels, a.d, a.wide, 64) &&
                       EncodeMatrices(&maps.w_1, a.w_1, a.channels, a.ffn, a.d, 64) &&
                       EncodeMatrices(&maps.w_2, a.w_2, a.channels, a.d, a.ffn, 64);
  if (!encoded) return kBadMaps;
  const int cluster = a.channels * Tile::kSlices;
  return Launch(FinishKernel, dim3((a.rows + Tile::kRows - 1) / Tile::kRows * cluster), Tile::kThreads,
                sizeof(FinishShared), cluster, a, maps, stream);
}

}  // namespace backstory::cuda
