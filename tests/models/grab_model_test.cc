// The acceptance list of GRAB on the model's public face: the cached serving pass equals the packed training pass,
// nothing leaks, and results do not depend on how the work was cut.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/page.h"
#include "models/grab/tensors.h"
#include "tests/models/grab_fixture.h"

namespace backstory::grab {
namespace {

const ConfigChoice kChoices[] = {
    {},
    {.channels = 1, .layers = 1},
    {.channels = 3, .layers = 3, .tasks = 2},
    {.norm = Norm::kPre},
    {.latent = 5},
    {.channels = 3, .norm = Norm::kPre, .latent = 7, .mixing = false},
    {.window_rows = 20},
    {.layers = 3, .window_sec = 3'000},
    {.channels = 1, .layers = 2, .norm = Norm::kPre, .window_rows = 33, .window_sec = 100'000, .tasks = 2},
};

constexpr Dtype kPrecisions[] = {Dtype::kF32, Dtype::kBf16};

struct World {
  Config config;
  TensorMap tensors;
  std::vector<ChannelRows> history;
};

World MakeWorld(const ConfigChoice& choice, const std::vector<size_t>& lengths, uint64_t seed) {
  Random random(seed);
  World w{SmallConfig(choice), {}, {}};
  w.tensors = RandomTensors(w.config, seed);
  for (int c = 0; c < w.config.channels(); ++c) {
    w.history.push_back(RandomHistory(w.config, lengths[static_cast<size_t>(c) % lengths.size()], &random));
  }
  return w;
}

std::unique_ptr<UserKv> Prefill(const Model& model, const std::vector<ChannelRows>& history) {
  auto kv = model.NewState();
  const absl::Status status = model.Extend(history, kv.get());
  EXPECT_TRUE(status.ok()) << status;
  return kv;
}

int64_t Newest(const World& w) {
  int64_t newest = 0;
  for (const ChannelRows& h : w.history) newest = h.time_us.empty() ? newest : std::max(newest, h.time_us.back());
  return newest;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

// (b) and (c) of the list: one packed pass scores every history row as a target at its own time; serving scores each
// from the cache alone.
TEST(Grab, CachedScoringEqualsThePackedPass) {
  uint64_t seed = 100;
  for (const ConfigChoice& choice : kChoices) {
    const World w = MakeWorld(choice, {61, 0, 17}, ++seed);
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    std::vector<CandidateTokens> tokens;
    for (size_t i = 0; i < 61; i += 6) {
      tokens.push_back(RandomCandidates(w.config, 1, w.history[0].time_us[i], &random));
      tokens.back().tie = w.history[0].tie[i];
    }
    tokens.push_back(RandomCandidates(w.config, 1, Newest(w) + 5'000'000, &random));
    std::vector<Target> targets;
    for (const CandidateTokens& t : tokens) targets.push_back({&t, t.now_us, t.tie});
    const auto want = PackedLogits(w.config, w.tensors, w.history, targets);
    for (const KernelTable* table : AllKernels()) {
      SCOPED_TRACE(table->target);
      ScopedKernels scope(*table);
      for (const Dtype precision : kPrecisions) {
        const auto model = MakeModel(w.config, w.tensors, nullptr, precision);
        const auto kv = Prefill(*model, w.history);
        for (size_t t = 0; t < tokens.size(); ++t) {
          const Scored got = ScoreAll(*model, kv.get(), tokens[t]);
          for (size_t task = 0; task < want[t].size(); ++task) {
            ASSERT_NEAR(got.logits[task], want[t][task],
                        LogitTolerance(w.config, 61, std::abs(want[t][task]), precision))
                << t << (precision == Dtype::kF32 ? " fp32" : " bf16");
          }
        }
      }
    }
  }
}

// (a): what an event was answered with, and everything at or after it, is invisible to a score at its time.
TEST(Grab, TheScoredEventItsTieGroupAndTheFutureDoNotLeak) {
  const World w = MakeWorld({}, {80, 40}, 7);
  const auto model = MakeModel(w.config, w.tensors, nullptr);
  Random random(8);
  int checked = 0;
  for (size_t row = 5; row < 80; row += 5) {
    CandidateTokens candidates = RandomCandidates(w.config, 3, w.history[0].time_us[row], &random);
    candidates.tie = w.history[0].tie[row];
    World changed = w;
    size_t flipped = 0;
    for (ChannelRows& channel : changed.history) {
      for (size_t i = 0; i < channel.time_us.size(); ++i) {
        if (channel.time_us[i] < candidates.now_us && channel.tie[i] != candidates.tie) continue;
        channel.action[i] = (channel.action[i] + 1) % (w.config.n_act - 1);
        for (SparseColumn& column : channel.tokens.sparse) {
          for (uint32_t at = column.offsets[i]; at < column.offsets[i + 1]; ++at)
            column.ids[at] = (column.ids[at] + 1) % 6;
        }
        ++flipped;
      }
    }
    ASSERT_GT(flipped, 0u);
    // Members of the tie group that stand before other visible rows change those rows' own states (a row of another
    // group may see them), so they are flipped only where nothing visible follows.
    bool clean = true;
    for (size_t c = 0; c < 2; ++c) {
      const ChannelRows& h = w.history[c];
      for (size_t i = 0; i < h.time_us.size(); ++i) {
        const bool visible = h.time_us[i] < candidates.now_us && h.tie[i] != candidates.tie;
        for (size_t j = 0; visible && j < i; ++j) clean &= changed.history[c].action[j] == h.action[j];
      }
    }
    if (!clean) continue;
    ++checked;
    const Scored before = ScoreAll(*model, Prefill(*model, w.history).get(), candidates);
    const Scored after = ScoreAll(*model, Prefill(*model, changed.history).get(), candidates);
    EXPECT_TRUE(SameBits(before.logits, after.logits)) << "row " << row;
    candidates.now_us = Newest(w) + 1;
    candidates.tie = CandidateTokens::kNoTie;
    EXPECT_FALSE(SameBits(ScoreAll(*model, Prefill(*model, w.history).get(), candidates).logits,
                          ScoreAll(*model, Prefill(*model, changed.history).get(), candidates).logits))
        << "the change must show once it is visible";
  }
  EXPECT_GE(checked, 5);
}

// (d)
TEST(Grab, CandidatesAreIsolatedAndOrderDoesNotMatter) {
  const World w = MakeWorld({.channels = 3}, {140, 9, 33}, 9);
  ThreadPool pool(3);
  for (const KernelTable* table : AllKernels()) {
    SCOPED_TRACE(table->target);
    ScopedKernels scope(*table);
    const auto model = MakeModel(w.config, w.tensors, &pool);
    const auto kv = Prefill(*model, w.history);
    Random random(10);
    const CandidateTokens all = RandomCandidates(w.config, 70, Newest(w) + 1'000'000, &random);
    const Scored want = ScoreAll(*model, kv.get(), all);
    std::vector<size_t> order(70);
    std::iota(order.begin(), order.end(), 0);
    for (size_t i = 69; i > 0; --i) std::swap(order[i], order[random.Below(i + 1)]);
    const Scored shuffled = ScoreAll(*model, kv.get(), Pick(all, order));
    for (size_t i = 0; i < 70; ++i) ASSERT_EQ(shuffled.logits[i], want.logits[order[i]]);
    for (size_t i : {0u, 1u, 47u, 48u, 69u}) {
      const size_t one[] = {i};
      ASSERT_EQ(ScoreAll(*model, kv.get(), Pick(all, one)).logits[0], want.logits[i]);
    }
  }
}

// Batched = single, bit for bit: every number of candidates from 1 to 200, from changing places, on one thread and on
// several, over histories whose pages are uniform, split and folded.
TEST(Grab, AScoresBitsDependOnNeitherBatchNorThreads) {
  const World w = MakeWorld({}, {420, 200}, 23);
  Random random(24);
  const CandidateTokens all = RandomCandidates(w.config, 200, Newest(w) + 1'000'000, &random);
  ThreadPool two(2), five(5), sixteen(16);
  for (const KernelTable* table : AllKernels()) {
    if (table == &RefKernels()) continue;
    SCOPED_TRACE(table->target);
    ScopedKernels scope(*table);
    for (const Dtype precision : kPrecisions) {
      const auto model = MakeModel(w.config, w.tensors, nullptr, precision);
      std::vector<std::unique_ptr<Model>> scorers;
      for (ThreadPool* pool : {static_cast<ThreadPool*>(nullptr), &two, &five, &sixteen}) {
        scorers.push_back(MakeModel(w.config, w.tensors, pool, precision));
      }
      const auto kv = Prefill(*model, w.history);
      const Scored want = ScoreAll(*model, kv.get(), all);
      for (size_t count = 1; count <= 200; ++count) {
        std::vector<size_t> picks(count);
        std::iota(picks.begin(), picks.end(), count * 37 % (201 - count));
        const CandidateTokens part = Pick(all, picks);
        for (const auto& scorer : scorers) {
          if (count > 24 && count % 8 != 1 && scorer != scorers[0] && scorer != scorers[1]) continue;
          const Scored got = ScoreAll(*scorer, kv.get(), part);
          ASSERT_EQ(0, std::memcmp(got.logits.data(), want.logits.data() + picks[0], count * sizeof(float)))
              << count << " candidates from " << picks[0];
        }
      }
    }
  }
}

// (e), bit for bit, over cuts and threads.
void ExpectAppendingEqualsPrefill(Dtype precision) {
  for (const ConfigChoice& choice : {kChoices[0], kChoices[3], kChoices[7]}) {
    const World w = MakeWorld(choice, {300, 131, 257}, 11);
    Random random(12);
    const CandidateTokens candidates = RandomCandidates(w.config, 5, Newest(w) + 1'000'000, &random);
    for (const KernelTable* table : AllKernels()) {
      if (table == &RefKernels()) continue;
      SCOPED_TRACE(table->target);
      ScopedKernels scope(*table);
      const Scored want = [&] {
        const auto model = MakeModel(w.config, w.tensors, nullptr, precision);
        return ScoreAll(*model, Prefill(*model, w.history).get(), candidates);
      }();
      for (size_t threads : {1u, 2u, 4u}) {
        ThreadPool pool(threads);
        const auto model = MakeModel(w.config, w.tensors, &pool, precision);
        for (size_t step : {1u, 7u, 128u, 129u}) {
          if (step == 1 && threads != 2) continue;
          auto kv = model->NewState();
          for (size_t rows = step; rows < 300 + step; rows += step) {
            std::vector<ChannelRows> prefix;
            for (const ChannelRows& h : w.history) prefix.push_back(Prefix(h, std::min(rows, h.time_us.size())));
            ASSERT_TRUE(model->Extend(prefix, kv.get()).ok());
          }
          ASSERT_TRUE(SameBits(ScoreAll(*model, kv.get(), candidates).logits, want.logits)) << step << " x " << threads;
        }
      }
    }
  }
}

TEST(Grab, AppendingEqualsPrefillBitForBit) {
  for (const Dtype precision : kPrecisions) ExpectAppendingEqualsPrefill(precision);
}

// Longer than one pass through the layers (4,096 rows), on the target in force.
void ExpectChunkedPrefillEqualsAppend(Dtype precision) {
  const World w = MakeWorld({.channels = 1}, {4200}, 13);
  ThreadPool pool(2);
  const auto model = MakeModel(w.config, w.tensors, &pool, precision);
  Random random(14);
  const CandidateTokens candidates = RandomCandidates(w.config, 4, Newest(w) + 1'000'000, &random);
  auto appended = model->NewState();
  for (size_t rows : {1000u, 4095u, 4096u, 4097u, 4200u}) {
    ASSERT_TRUE(model->Extend(std::vector<ChannelRows>{Prefix(w.history[0], rows)}, appended.get()).ok());
  }
  EXPECT_TRUE(SameBits(ScoreAll(*model, Prefill(*model, w.history).get(), candidates).logits,
                       ScoreAll(*model, appended.get(), candidates).logits));
}

TEST(Grab, ChunkedPrefillEqualsAppendBitForBit) {
  for (const Dtype precision : kPrecisions) ExpectChunkedPrefillEqualsAppend(precision);
}

void ExpectTruncateAndExtendEqualsFresh(Dtype precision) {
  const World w = MakeWorld({}, {270, 130}, 15);
  const auto model = MakeModel(w.config, w.tensors, nullptr, precision);
  Random random(16);
  const CandidateTokens candidates = RandomCandidates(w.config, 4, Newest(w) + 1'000'000, &random);
  const Scored want = ScoreAll(*model, Prefill(*model, w.history).get(), candidates);
  World other = w;  // another future after row 100 of each channel
  for (ChannelRows& h : other.history) {
    for (size_t i = 100; i < h.time_us.size(); ++i) h.action[i] = 0, h.tie[i] = 5;
  }
  for (size_t keep : {100u, 99u, 1u, 0u}) {
    auto kv = Prefill(*model, other.history);
    const size_t bytes = kv->Bytes();
    for (int c = 0; c < 2; ++c) kv->Truncate(c, keep);
    EXPECT_EQ(kv->Rows(0), keep);
    EXPECT_LT(kv->Bytes(), bytes);
    ASSERT_TRUE(model->Extend(w.history, kv.get()).ok());
    EXPECT_TRUE(SameBits(ScoreAll(*model, kv.get(), candidates).logits, want.logits)) << keep;
  }
}

TEST(Grab, TruncateAndExtendEqualsFresh) {
  for (const Dtype precision : kPrecisions) ExpectTruncateAndExtendEqualsFresh(precision);
}

TEST(Grab, Bf16HalvesTheState) {
  const World w = MakeWorld({}, {512, 512}, 25);
  const auto f32 = MakeModel(w.config, w.tensors, nullptr),
             bf16 = MakeModel(w.config, w.tensors, nullptr, Dtype::kBf16);
  EXPECT_NE(f32->state_id(), bf16->state_id());
  EXPECT_LT(bf16->parameter_bytes(), f32->parameter_bytes());
  const auto wide = Prefill(*f32, w.history), narrow = Prefill(*bf16, w.history);
  const size_t pages = 2 * 2 * 4;                    // channels, layers, pages
  const size_t elements = kPageRows * 3 * (6 + 16);  // heads; d_head 5 in whole pairs, in whole panels
  EXPECT_EQ(wide->Bytes() - narrow->Bytes(),
            pages * (kPageRows * 3 * (5 + 16) * sizeof(float) - elements * sizeof(Bf16)));
}

// visible_rows and first_row see a part of the state: the prefix equals a state that never had more.
TEST(Grab, PrefixViewsNeedNoRebuild) {
  const World w = MakeWorld({}, {200, 150}, 17);
  const auto model = MakeModel(w.config, w.tensors, nullptr);
  const auto kv = Prefill(*model, w.history);
  Random random(18);
  CandidateTokens candidates = RandomCandidates(w.config, 4, 0, &random);
  for (size_t rows : {0u, 1u, 128u, 150u}) {
    candidates.now_us = rows == 0 ? Newest(w) : w.history[0].time_us[rows - 1] + 1;
    std::vector<ChannelRows> prefix;
    for (const ChannelRows& h : w.history) prefix.push_back(Prefix(h, rows));
    const Scored want = ScoreAll(*model, Prefill(*model, prefix).get(), candidates);
    const size_t visible[] = {rows, rows}, none[] = {0, 0};
    std::vector<float> logits(4);
    ScoreSegment segment{.kv = kv.get(), .visible_rows = visible, .candidates = &candidates, .logits = logits.data()};
    ASSERT_TRUE(model->Score({&segment, 1}).ok());
    EXPECT_TRUE(SameBits(logits, want.logits)) << rows;
    segment.first_row = none;
    ASSERT_TRUE(model->Score({&segment, 1}).ok());
    EXPECT_TRUE(SameBits(logits, want.logits)) << rows;
  }
  // Nothing visible is an empty history, which is no state at all.
  const size_t all[] = {200, 150};
  std::vector<float> logits(4);
  const ScoreSegment segment{
      .kv = kv.get(), .visible_rows = all, .first_row = all, .candidates = &candidates, .logits = logits.data()};
  ASSERT_TRUE(model->Score({&segment, 1}).ok());
  EXPECT_TRUE(SameBits(logits, ScoreAll(*model, nullptr, candidates).logits));
  EXPECT_TRUE(SameBits(logits, ScoreAll(*model, model->NewState().get(), candidates).logits));
}

// (f): several users in one call, bit for bit as alone.
TEST(Grab, UsersOfOneCallDoNotTouchEachOther) {
  const World w = MakeWorld({.tasks = 2}, {200, 90}, 19);
  ThreadPool pool(2);
  const auto model = MakeModel(w.config, w.tensors, &pool);
  Random random(20);
  std::vector<std::unique_ptr<UserKv>> kvs;
  std::vector<CandidateTokens> candidates;
  std::vector<std::vector<float>> logits;
  std::vector<std::vector<size_t>> visible;
  std::vector<ScoreSegment> segments;
  for (size_t user = 0; user < 5; ++user) {
    std::vector<ChannelRows> history;
    for (size_t c = 0; c < 2; ++c) history.push_back(RandomHistory(w.config, user * 60 * (c + 1), &random));
    kvs.push_back(user == 2 ? nullptr : Prefill(*model, history));
    const int64_t now = history[1].time_us.empty() ? 1 : history[1].time_us.back();
    candidates.push_back(RandomCandidates(w.config, user == 4 ? 0 : 1 + user * 20, now, &random));
    logits.emplace_back(candidates.back().item.rows * 2);
    visible.push_back(
        {kvs.back() == nullptr ? 0 : kvs.back()->Rows(0), kvs.back() == nullptr ? 0 : kvs.back()->Rows(1)});
  }
  for (size_t user = 0; user < 5; ++user) {
    segments.push_back({.kv = kvs[user].get(),
                        .visible_rows = visible[user],
                        .candidates = &candidates[user],
                        .logits = logits[user].data()});
  }
  ASSERT_TRUE(model->Score(segments).ok());
  for (size_t user = 0; user < 5; ++user) {
    EXPECT_TRUE(SameBits(logits[user], ScoreAll(*model, kvs[user].get(), candidates[user]).logits)) << user;
  }
}

TEST(Grab, ExplanationsNameTheRowsWithTheLargestMassAndChangeNothing) {
  const World w = MakeWorld({}, {160, 30}, 21);
  for (const KernelTable* table : AllKernels()) {
    SCOPED_TRACE(table->target);
    ScopedKernels scope(*table);
    const auto model = MakeModel(w.config, w.tensors, nullptr);
    const auto kv = Prefill(*model, w.history);
    Random random(22);
    const CandidateTokens candidates = RandomCandidates(w.config, 3, Newest(w) + 1, &random);
    const Scored plain = ScoreAll(*model, kv.get(), candidates), all = ScoreAll(*model, kv.get(), candidates, 1000),
                 top = ScoreAll(*model, kv.get(), candidates, 4);
    EXPECT_TRUE(SameBits(plain.logits, all.logits));
    ASSERT_EQ(all.attributions.size(), 3u);
    for (size_t i = 0; i < 3; ++i) {
      ASSERT_EQ(all.attributions[i].size(), 190u);
      ASSERT_EQ(top.attributions[i].size(), 8u);
      double mass[2] = {0, 0};
      for (const Attribution& a : all.attributions[i]) {
        EXPECT_EQ(a.event_id, w.history[static_cast<size_t>(a.channel)].event_id[a.row]);
        EXPECT_GE(a.mass, 0);
        mass[a.channel] += a.mass;
      }
      EXPECT_GT(mass[0], 0.1);
      EXPECT_LT(mass[0], 1);
      EXPECT_LT(mass[1], 1);
      for (size_t j = 0; j < 8; ++j) {
        EXPECT_EQ(top.attributions[i][j].row, all.attributions[i][j < 4 ? j : 160 + j - 4].row);
        if (j % 4 > 0) {
          EXPECT_LE(top.attributions[i][j].mass, top.attributions[i][j - 1].mass);
        }
      }
    }
  }
}

}  // namespace
}  // namespace backstory::grab
