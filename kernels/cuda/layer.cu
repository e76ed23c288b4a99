#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/layer.h"
#include "kernels/cuda/linear.cuh"
#include "kernels/cuda/linear_end.cuh"

namespace backstory::cuda {
namespace {

// Matrices [count][rows][columns] of bf16, in boxes of 64 columns x `box_rows` rows.
bool EncodeMatrices(CUtensorMap* map, const void* base, int count, int rows, int columns, int box_rows) {
  const auto u = [](int x) { return static_cast<cuuint64_t>(x); };
  return Encode<3>(map, base, {u(columns), u(rows), u(count)}, {columns, int64_t{rows} * columns},
                   {64, static_cast<cuuint32_t>(box_rows), 1});
}

constexpr char kNoDriver[] = "layer: the driver has no cuTensorMapEncodeTiled (older than CUDA 12)";
constexpr char kBadMaps[] = "layer: the driver refuses the tensor maps (16-byte aligned bases?)";

// A launch's operands: `rows` [channels][a.rows][a.in] times `w` [channels][a.out][a.in], and perhaps a second matrix;
// the residual fp32 [channels][a.rows][a.out]; and results, bf16 [channels][a.rows][a.out] or
// [a.rows][channels][a.out].
struct Operands {
  const void *rows = nullptr, *w = nullptr, *w_second = nullptr;
  float* x = nullptr;
  void *y = nullptr, *concat = nullptr;
};

template <class Tile>
bool EncodeMaps(const LinearArgs& a, const Operands& of, LinearMaps* maps) {
  const auto u = [](int x) { return static_cast<cuuint64_t>(x); };
  constexpr cuuint32_t kRows = Tile::kRows;
  bool encoded = EncodeMatrices(&maps->rows, of.rows, a.channels, a.rows, a.in, Tile::kRows) &&
                 EncodeMatrices(&maps->w, of.w, a.channels, a.out, a.in, Tile::kFeatures);
  if (a.second_out > 0) {
    encoded = encoded && EncodeMatrices(&maps->w_second, of.w_second, a.channels, a.second_out, a.in, Tile::kFeatures);
  }
  if (of.x != nullptr) {
    encoded = encoded && Encode<3>(&maps->x, of.x, {u(a.out), u(a.rows), u(a.channels)},
                                   {a.out, int64_t{a.rows} * a.out}, {32, kRows, 1}, true);
  }
  if (of.concat != nullptr) {
    return encoded && Encode<3>(&maps->y, of.concat, {u(a.out), u(a.rows), u(a.channels)},
                                {int64_t{a.channels} * a.out, a.out}, {64, kRows, 1});
  }
  return encoded && (of.y == nullptr || EncodeMatrices(&maps->y, of.y, a.channels, a.rows, a.out, Tile::kRows));
}

template <class Tile>
const char* LaunchTile(const LinearArgs& a, const Operands& of, cudaStream_t stream) {
  LinearMaps maps = {};
  if (!EncodeMaps<Tile>(a, of, &maps)) return kBadMaps;
  constexpr int kBytes = sizeof(LinearShared<Tile>);
  static_assert(kBytes <= 232448);
  static std::atomic<uint64_t> allowed = 0;
  const auto kernel = LinearKernel<Tile>;
  const cudaError_t refused = Allow(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes, &allowed);
  if (refused != cudaSuccess) return cudaGetErrorString(refused);
  cudaLaunchConfig_t config = {};
  const unsigned blocks = a.out / Tile::kFeatures + (a.second_out + Tile::kFeatures - 1) / Tile::kFeatures;
  config.gridDim = dim3(blocks, (a.rows + Tile::kRows - 1) / Tile::kRows, Tile::kTwin ? 1 : a.channels);
  config.blockDim = Tile::kThreads;
  config.dynamicSmemBytes = kBytes;
  config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  if (Tile::kCluster) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {blocks, 1, 1};
  }
  if (a.overlap_previous) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  config.attrs = attributes;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, a, maps);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Stages of the ring by what a launch ends with and its blocks' rows: as many as fit, so that weights arrive before the
// rows they wait for; with many blocks of a plain product as many as leave room for two on a multiprocessor.
template <LinearEnd kEnd, int kRows>
constexpr int Stages(bool many) {
  constexpr bool kNorm = kEnd == LinearEnd::kNorm, kMix = kEnd == LinearEnd::kMix;
  if (kRows == 32) return 8;
  if (kRows == 64) return kNorm ? 7 : kMix ? 5 : 8;
  return kNorm ? 4 : kMix ? 2 : many ? 3 : 6;
}

// Blocks' rows: the fewest with which a launch takes half of an H100, so that the next one begins on the other half
// (attention, which follows the projections, takes all of it); else with which all blocks run at once (clusters do not
// fill every part of the card); else the most. A function of the launch's shape alone, as bits must be.
template <LinearEnd kEnd>
const char* Launch(const LinearArgs& a, const Operands& of, void* stream) {
  constexpr bool kTwin = kEnd == LinearEnd::kMix;
  constexpr int kHalf = 66;
  const int wide = (a.out + a.second_out + 127) / 128 * (kTwin ? 2 : 1), blocks = kTwin ? wide : wide * a.channels;
  const int at_once = kEnd == LinearEnd::kStore || wide == 1 ? 132 : wide <= 4 ? 120 : 112;
  const auto blocks_of = [&](int rows) { return (a.rows + rows - 1) / rows * blocks; };
  const auto best = [&] {
    for (int most : {a.second_out > 0 ? at_once : kHalf, at_once}) {
      for (int rows : {32, 64, 128}) {
        if (blocks_of(rows) <= most) return rows;
      }
    }
    return 128;
  };
  const auto s = static_cast<cudaStream_t>(stream);
  switch (const int rows = best(); rows) {
    case 32:
      return LaunchTile<LinearTile<32, Stages<kEnd, 32>(false), kEnd>>(a, of, s);
    case 64:
      return LaunchTile<LinearTile<64, Stages<kEnd, 64>(false), kEnd>>(a, of, s);
    default:
      if (blocks_of(rows) > kHalf) return LaunchTile<LinearTile<128, Stages<kEnd, 128>(true), kEnd>>(a, of, s);
      return LaunchTile<LinearTile<128, Stages<kEnd, 128>(false), kEnd>>(a, of, s);
  }
}

bool FitsNorm(int d) { return d > 0 && d % 128 == 0 && d <= 512; }

}  // namespace

bool ProjectFits(int in, int out, int bias_out) {
  return in > 0 && in % 64 == 0 && out > 0 && out % 128 == 0 && bias_out >= 0;
}

const char* Project(const ProjectArgs& a, void* stream) {
  if (!ProjectFits(a.in, a.out, a.bias_out)) return "project: no kernel for these widths";
  if (a.rows < 1 || a.rows % 4 != 0 || a.channels < 1) return "project: rows must be a multiple of 4, > 0";
  if (FindEncode() == nullptr) return kNoDriver;
  return Launch<LinearEnd::kStore>({.rows = a.rows,
                                    .channels = a.channels,
                                    .in = a.in,
                                    .out = a.out,
                                    .second_out = a.bias_out,
                                    .overlap_previous = a.overlap_previous,
                                    .b = static_cast<const __nv_bfloat16*>(a.b),
                                    .second = a.bias},
                                   {.rows = a.z, .w = a.w, .w_second = a.w_bias, .y = a.y}, stream);
}

bool FinishFits(int channels, int d, int wide, int ffn, bool mixing) {
  return channels >= 1 && (!mixing || channels == 2) && FitsNorm(d) && wide > 0 && wide % 64 == 0 && ffn > 0 &&
         ffn % 128 == 0;
}

const char* Finish(const FinishArgs& a, void* stream) {
  if (!FinishFits(a.channels, a.d, a.wide, a.ffn, a.gate_w != nullptr)) return "finish: no kernel for these widths";
  if (a.rows < 1) return "finish: no rows";
  if (FindEncode() == nullptr) return kNoDriver;
  const LinearArgs add = {.rows = a.rows,
                          .channels = a.channels,
                          .in = a.wide,
                          .out = a.d,
                          .overlap_previous = a.overlap_previous,
                          .gain = a.n1_g,
                          .shift = a.n1_b,
                          .write_x = true};
  const Operands of_add = {.rows = a.attended, .w = a.w_o, .x = a.x, .y = a.z};
  if (const char* wrong = Launch<LinearEnd::kNorm>(add, of_add, stream)) return wrong;
  const LinearArgs inner = {.rows = a.rows,
                            .channels = a.channels,
                            .in = a.d,
                            .out = a.ffn,
                            .overlap_previous = true,
                            .b = static_cast<const __nv_bfloat16*>(a.b_1),
                            .relu = true};
  if (const char* wrong = Launch<LinearEnd::kStore>(inner, {.rows = a.z, .w = a.w_1, .y = a.inner}, stream))
    return wrong;
  if (a.inner_only) return nullptr;
  LinearArgs outer = add;
  outer.in = a.ffn;
  outer.overlap_previous = true;
  outer.b_float = a.b_2;
  outer.gain = a.n2_g, outer.shift = a.n2_b;
  outer.write_x = a.concat == nullptr;
  outer.gate_w = a.gate_w, outer.gate_b = a.gate_b;
  const Operands of_outer = {.rows = a.inner, .w = a.w_2, .x = a.x, .y = a.z, .concat = a.concat};
  if (a.gate_w != nullptr) return Launch<LinearEnd::kMix>(outer, of_outer, stream);
  return Launch<LinearEnd::kNorm>(outer, of_outer, stream);
}

bool HeadFits(int in, int hidden, int tasks) {
  return in > 0 && in % 64 == 0 && hidden > 0 && hidden % 128 == 0 && hidden <= 1024 && (tasks == 1 || tasks == 2);
}

const char* Head(const HeadArgs& a, void* stream) {
  if (!HeadFits(a.in, a.hidden, a.tasks)) return "head: no kernel for these widths";
  if (a.rows < 1) return "head: no rows";
  if (FindEncode() == nullptr) return kNoDriver;
  return Launch<LinearEnd::kHead>({.rows = a.rows,
                                   .channels = 1,
                                   .in = a.in,
                                   .out = a.hidden,
                                   .overlap_previous = a.overlap_previous,
                                   .b_float = a.b_1,
                                   .head_w = a.w_2,
                                   .head_b = a.b_2,
                                   .logits = a.logits,
                                   .tasks = a.tasks},
                                  {.rows = a.concat, .w = a.w_1}, stream);
}

}  // namespace backstory::cuda
