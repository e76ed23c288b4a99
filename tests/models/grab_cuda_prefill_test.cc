// K/V that appends leave in the pool are those that one prefill leaves, whatever the architecture and the steps.
// Skipped, with the reason, where there is no Hopper card.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "kernels/dtype.h"
#include "models/grab/config.h"
#include "models/grab/cuda/network.h"
#include "models/grab/cuda/prefill.h"
#include "models/grab/cuda/runtime.h"
#include "models/grab/init_random.h"
#include "tests/models/grab_fixture.h"

namespace backstory::grab {
namespace {

// One channel's history and token rows.
struct History {
  ChannelRows rows;
  std::vector<int32_t> previous_tie;
  std::vector<std::vector<float>> x;
  RowIndex index() const { return {rows.time_us, rows.tie, previous_tie}; }
};

History MakeHistory(const Config& config, size_t rows, Random* random) {
  History h{RandomHistory(config, rows, random), {}, {}};
  for (size_t i = 0; i < rows; ++i) {
    int32_t previous = static_cast<int32_t>(i) - 1;
    while (previous >= 0 && h.rows.tie[static_cast<size_t>(previous)] != h.rows.tie[i]) --previous;
    h.previous_tie.push_back(previous);
    auto& x = h.x.emplace_back(static_cast<size_t>(config.d));
    for (float& value : x) value = random->Normal();
  }
  return h;
}

// A model's prefill, and users of it.
class World {
 public:
  World(const Config& config, const TensorMap& tensors, std::shared_ptr<CudaRuntime> runtime) : runtime_(runtime) {
    pool_ = *runtime_->PoolFor(*CudaNetwork::KvShape(config));
    network_ = *CudaNetwork::Load(config, tensors, runtime_->gemms(), pool_);
    prefill_ = *CudaPrefill::Create(config, &network_->weights(), runtime_->gemms(), pool_);
    EXPECT_EQ(cudaMemset(pool_->data(), 0x7f, static_cast<size_t>(pool_->blocks()) * pool_->shape().block_bytes()),
              cudaSuccess);  // what nobody writes is not finite
  }

  struct User {
    std::vector<std::vector<int32_t>> blocks;
    std::vector<size_t> rows;
  };
  User NewUser(const std::vector<History>& histories) {
    User user;
    for (const History& h : histories) {
      user.blocks.push_back(*pool_->Take((h.rows.time_us.size() + 127) / 128));
      user.rows.push_back(0);
    }
    return user;
  }

  // Rows up to rows[channel].
  void Append(const std::vector<History>& histories, const std::vector<size_t>& rows, User* user) {
    std::vector<CudaHistory> channels;
    for (size_t c = 0; c < histories.size(); ++c) {
      const History& h = histories[c];
      channels.push_back({.first = user->rows[c],
                          .rows = rows[c],
                          .blocks = std::span(user->blocks[c]).first((rows[c] + 127) / 128),
                          .facts = h.index(),
                          .action = h.rows.action});
    }
    const absl::Status status =
        prefill_->Append(channels, [&](size_t c, size_t first, size_t count, size_t stride, float* out) {
          std::fill(out, out + count * stride, 0.0f);
          for (size_t i = 0; i < count; ++i) {
            std::copy(histories[c].x[first + i].begin(), histories[c].x[first + i].end(), out + i * stride);
          }
        });
    ASSERT_TRUE(status.ok()) << status;
    user->rows = rows;
  }

  // [row of all pages][d_h] of one layer's K or V and head.
  std::vector<float> Read(const User& user, size_t channel, int layer, int kv, int head) const {
    const CudaKvShape& s = pool_->shape();
    std::vector<float> values;
    std::vector<uint16_t> page(s.head_size());
    for (size_t i = 0; i < (user.rows[channel] + 127) / 128; ++i) {
      const size_t at = static_cast<size_t>(user.blocks[channel][i]) * s.block_size() +
                        static_cast<size_t>(2 * layer + kv) * s.kv_size() + static_cast<size_t>(head) * s.head_size();
      EXPECT_EQ(cudaMemcpy(page.data(), static_cast<const uint16_t*>(pool_->data()) + at, page.size() * 2,
                           cudaMemcpyDeviceToHost),
                cudaSuccess);
      for (uint16_t x : page) values.push_back(FromBf16(x));
    }
    return values;
  }
  const CudaKvShape& shape() const { return pool_->shape(); }

 private:
  const std::shared_ptr<CudaRuntime> runtime_;
  std::shared_ptr<CudaPagePool> pool_;
  std::unique_ptr<CudaNetwork> network_;
  std::unique_ptr<CudaPrefill> prefill_;
};

// Both users' rows agree to the roundings of the layers below, in norm; behind the last row there are zeroes.
void ExpectSame(const World& world, const World::User& a, const World::User& b, const std::string& what) {
  const CudaKvShape& s = world.shape();
  double worst = 0, worst_mean = 0;
  for (size_t c = 0; c < a.rows.size(); ++c) {
    for (int layer = 0; layer < s.layers; ++layer) {
      // Nine rounded products a layer with the latent's, as LogitTolerance counts an error, on both sides.
      const double rms = std::sqrt(2 * 9.0 * (layer + 1) * 2 / 3) / 512;
      double squares = 0;
      size_t rows = 0;
      for (int kv = 0; kv < 2; ++kv) {
        for (int head = 0; head < s.heads; ++head) {
          const auto x = world.Read(a, c, layer, kv, head), y = world.Read(b, c, layer, kv, head);
          ASSERT_EQ(x.size(), y.size());
          const auto width = static_cast<size_t>(s.d_h);
          for (size_t row = 0; row * width < x.size(); ++row) {
            double difference = 0, size = 0;
            for (size_t i = row * width; i < (row + 1) * width; ++i) {
              difference += std::pow(x[i] - y[i], 2), size += std::pow(y[i], 2);
              if (row >= a.rows[c]) {
                ASSERT_TRUE(x[i] == 0 && y[i] == 0) << what << ": behind the last row, " << row << " of channel " << c;
              }
            }
            if (row >= a.rows[c]) continue;
            const double share = std::sqrt(difference / size) / rms;
            worst = std::max(worst, share), squares += share * share, ++rows;
            ASSERT_LE(share, 8) << what << ": channel " << c << " layer " << layer << " kv " << kv << " head " << head
                                << " row " << row;
          }
        }
      }
      const double mean = rows == 0 ? 0 : std::sqrt(squares / static_cast<double>(rows));
      worst_mean = std::max(worst_mean, mean);
      ASSERT_LE(mean, 1) << what << ": channel " << c << " layer " << layer;
    }
  }
  std::printf("  %s: rows differ by %.3f of the rms of roundings, the worst by %.3f\n", what.c_str(), worst_mean,
              worst);
}

std::shared_ptr<CudaRuntime> OpenCard(std::string* why) {
  auto runtime = CudaRuntime::Open({.kv_bytes = size_t{256} << 20});
  if (!runtime.ok()) *why = std::string(runtime.status().message());
  return runtime.ok() ? *runtime : nullptr;
}

TEST(GrabCudaPrefill, AppendsLeaveWhatOnePrefillLeaves) {
  std::string why;
  const auto runtime = OpenCard(&why);
  if (runtime == nullptr) GTEST_SKIP() << why;
  const ConfigChoice choices[] = {
      {.layers = 3},
      {.channels = 1, .layers = 1},
      {.channels = 3, .norm = Norm::kPre},
      {.latent = 5},
      {.channels = 3, .layers = 3, .norm = Norm::kPre, .latent = 7, .window_rows = 20},
      {.window_sec = 30'000'000},
      {.window_rows = 1},
  };
  uint64_t seed = 500;
  for (const ConfigChoice& choice : choices) {
    for (const int d_head : {5, 96}) {
      Config config = SmallConfig(choice);
      config.d_head = d_head;
      Random random(++seed);
      World world(config, RandomTensors(config, seed), runtime);
      std::vector<History> histories;
      for (int c = 0; c < config.channels(); ++c) {
        histories.push_back(MakeHistory(config, c == 1 ? 131 : 300, &random));
      }
      std::vector<size_t> all, rows;
      for (const History& h : histories) all.push_back(h.rows.time_us.size());
      World::User once = world.NewUser(histories), steps = world.NewUser(histories);
      world.Append(histories, all, &once);
      // Some at once, then a few at a time, sometimes of one channel alone.
      for (const size_t n : all) rows.push_back(std::min<size_t>(n, 120));
      for (size_t step = 1; rows != all; ++step) {
        for (size_t c = 0; c < rows.size(); ++c) {
          if (step % 7 == c + 1) continue;
          const size_t more = step == 20 ? 40 : 1 + (step + c) % 4;
          rows[c] = std::min(all[c], rows[c] + more);
        }
        world.Append(histories, rows, &steps);
        if (testing::Test::HasFatalFailure()) return;
      }
      ExpectSame(world, steps, once, "architecture " + std::to_string(seed));
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST(GrabCudaPrefill, ThePresetsAppendsLeaveWhatItsPrefillLeaves) {
  std::string why;
  const auto runtime = OpenCard(&why);
  if (runtime == nullptr) GTEST_SKIP() << why;
  const Config config = *PresetConfig("grab-512");
  Random random(7);
  World world(config, RandomWeights(config, 5), runtime);
  std::vector<History> histories;
  for (const size_t rows : {1100, 700}) histories.push_back(MakeHistory(config, rows, &random));
  World::User once = world.NewUser(histories), steps = world.NewUser(histories);
  world.Append(histories, {1100, 700}, &once);
  for (const auto& rows : std::vector<std::vector<size_t>>{{500, 0},
                                                           {500, 300},
                                                           {1000, 697},
                                                           {1001, 698},
                                                           {1023, 698},
                                                           {1026, 699},
                                                           {1090, 700},
                                                           {1094, 700},
                                                           {1100, 700}}) {
    world.Append(histories, rows, &steps);
  }
  ExpectSame(world, steps, once, "grab-512");
}

}  // namespace
}  // namespace backstory::grab
