// The independent float64 oracle (tests/conformance/grab) against the readable twin and every machine target.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/dispatch.h"
#include "models/grab/stack.h"
#include "models/safetensors.h"

namespace backstory::grab {
namespace {

std::string Folder() {
  const char* root = std::getenv("BACKSTORY_SOURCE_DIR");
  return absl::StrCat(root == nullptr ? "." : root, "/tests/conformance/grab");
}

std::vector<std::string> Cases() {
  std::vector<std::string> cases;
  for (const auto& entry : std::filesystem::directory_iterator(Folder())) {
    if (entry.path().extension() == ".safetensors") cases.push_back(entry.path().stem().string());
  }
  std::sort(cases.begin(), cases.end());
  return cases;
}

struct Case {
  Config config;
  SafetensorsFile file;
  TensorMap tensors;
  size_t channels = 0, longest = 0;
  Dtype precision = Dtype::kF32;

  template <typename T>
  std::vector<T> Read(const std::string& name) const {
    auto values = file.Read<T>(name);
    EXPECT_TRUE(values.ok()) << values.status();
    return values.ok() ? *values : std::vector<T>();
  }
};

Case LoadCase(const std::string& name) {
  Case c;
  auto file = SafetensorsFile::Open(absl::StrCat(Folder(), "/", name, ".safetensors"));
  EXPECT_TRUE(file.ok()) << file.status();
  c.file = *file;
  for (const SafetensorsEntry& entry : c.file.entries()) {
    if (entry.name.rfind("w.", 0) != 0) continue;
    EXPECT_TRUE(c.tensors.Add(entry.name, entry.shape, c.Read<float>(entry.name)).ok());
  }
  const auto json = nlohmann::json::parse(c.file.metadata().at("config"));
  c.channels = json["channels"];
  while (c.file.Find(absl::StrCat("in.x_P.", c.channels)) != nullptr) ++c.channels;
  while (c.file.Find(absl::StrCat("in.x_P.", c.channels - 1)) == nullptr) --c.channels;
  c.config.d = json["d"];
  c.config.heads = json["heads"];
  c.config.d_head = json["d_head"];
  c.config.layers = json["layers"];
  c.config.latent = json["latent"];
  c.config.ffn = json["ffn"];
  c.config.n_pos = json["n_pos"];
  c.config.n_time = json["n_time"];
  c.config.n_act = json["n_act"];
  c.config.window_rows = json["window_rows"];
  c.config.window_sec = json["window_sec"];
  c.config.norm = json["norm"] == "pre" ? Norm::kPre : Norm::kPost;
  c.config.head_hidden = c.config.d;
  c.config.tokenizer.channels.resize(c.channels);
  for (size_t i = 0; i < c.channels; ++i) {
    c.longest = std::max(c.longest, c.Read<int64_t>(absl::StrCat("in.time.", i)).size());
  }
  return c;
}

// Every output is a chain of sums; each of n terms adds at most eps of the magnitudes it sums, and a layer passes the
// error of the one before on (normalisation keeps rows at the scale of their outputs). n: the products and sums along
// one row's path through a layer, the keys of its softmax included, and 16 for the element-wise steps (exp: 2e-7 = 4
// eps, norm, gate).
// bf16: each operand of a product is off by up to 2^-8 of itself; a product is given sqrt(2 / 3) 2^-9 rms of its own;
// five times that, in quadrature over the eight products of each layer, as many times as there are layers above.
double Tolerance(const Case& c, double scale) {
  if (c.precision == Dtype::kBf16) {
    return 5 * std::ldexp(std::sqrt(2.0 / 3 * 8 * c.config.layers * c.config.layers), -9) * std::max(scale, 1.0);
  }
  const double per_layer = 2.0 * c.config.d + (c.config.latent > 0 ? c.config.d : 0) + 2.0 * c.config.d_head +
                           c.config.heads * c.config.d_head + 2.0 * c.config.ffn + static_cast<double>(c.longest + 1) +
                           static_cast<double>(c.channels) * c.config.d + 16;
  return std::ldexp(1.0, -24) * per_layer * c.config.layers * std::max(scale, 1.0);
}

void ExpectClose(const Case& c, const std::string& name, const std::vector<float>& got) {
  const std::vector<double> want = c.Read<double>(name);
  ASSERT_EQ(got.size(), want.size()) << name;
  double scale = 0, worst = 0;
  size_t at = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    scale = std::max(scale, std::abs(want[i]));
    const double error = std::abs(got[i] - want[i]);
    if (!(error <= worst)) worst = error, at = i;  // a NaN is the worst
  }
  if (want.empty()) return;
  const double tolerance = Tolerance(c, scale);
  EXPECT_LE(worst, tolerance) << name << "[" << at << "]: got " << got[at] << ", want " << want[at];
  ::testing::Test::RecordProperty(name, absl::StrCat(worst / tolerance));
}

struct History {
  std::vector<std::vector<float>> x;
  std::vector<std::vector<int64_t>> time, tie;
  std::vector<std::vector<uint64_t>> ids;
  std::vector<std::vector<int32_t>> action;
};

History LoadHistory(const Case& c) {
  History h;
  for (size_t i = 0; i < c.channels; ++i) {
    h.x.push_back(c.Read<float>(absl::StrCat("in.x_P.", i)));
    h.time.push_back(c.Read<int64_t>(absl::StrCat("in.time.", i)));
    for (int64_t& t : h.time.back()) t *= 1'000'000;
    h.tie.push_back(c.Read<int64_t>(absl::StrCat("in.tie.", i)));
    h.action.emplace_back();
    for (int64_t a : c.Read<int64_t>(absl::StrCat("in.act.", i))) h.action.back().push_back(static_cast<int32_t>(a));
    h.ids.emplace_back(h.time.back().size(), 0);
  }
  return h;
}

// Appends rows [from, to) (clipped) of every channel.
void AppendRows(const Stack& stack, size_t from, size_t to, ThreadPool* pool, History* h, CpuUserKv* kv) {
  std::vector<HistoryRows> rows;
  const size_t d = static_cast<size_t>(stack.config().d);
  for (size_t i = 0; i < h->x.size(); ++i) {
    const size_t n = h->time[i].size(), a = std::min(from, n), b = std::min(to, n);
    rows.push_back({.x = h->x[i].data() + a * d,
                    .facts = {std::span(h->time[i]).subspan(a, b - a), std::span(h->tie[i]).subspan(a, b - a),
                              std::span(h->ids[i]).subspan(a, b - a)},
                    .action = std::span(h->action[i]).subspan(a, b - a)});
  }
  stack.Append(rows, true, pool, kv);
}

void CheckKv(const Case& c, const CpuUserKv& kv) {
  const size_t wide = static_cast<size_t>(c.config.heads * c.config.d_head);
  for (int l = 0; l < c.config.layers; ++l) {
    for (size_t i = 0; i < c.channels; ++i) {
      const ChannelState& channel = kv.channel(i);
      const std::vector<PageView> pages = channel.pages(static_cast<size_t>(l));
      std::vector<float> k(channel.rows() * wide), v(channel.rows() * wide);
      const TensorView bact = *c.tensors.Find(absl::StrCat("w.l", l, ".c", i, ".bact"));
      const std::vector<int64_t> action = c.Read<int64_t>(absl::StrCat("in.act.", i));
      for (size_t r = 0; r < channel.rows(); ++r) {
        ReadRow(channel.shape(), r % kPageRows, pages[r / kPageRows], &k[r * wide], &v[r * wide]);
        for (size_t j = 0; j < wide; ++j) {  // the oracle's K has no bias folded in
          const size_t entry = static_cast<size_t>(action[r]) * channel.shape().d_k + j % channel.shape().d_k;
          k[r * wide + j] -= bact.data[entry];
        }
      }
      ExpectClose(c, absl::StrCat("out.k.l", l, ".c", i), k);
      ExpectClose(c, absl::StrCat("out.v.l", l, ".c", i), v);
    }
  }
}

void CheckScores(const Case& c, const Stack& stack, const CpuUserKv& kv, ThreadPool* pool) {
  const std::vector<float> x = c.Read<float>("in.x_F");
  const size_t rows = x.size() / static_cast<size_t>(c.config.d);
  const std::vector<size_t> visible(c.channels, 1u << 30);
  std::vector<float> logits(rows);
  ScoreTrace trace;
  stack.Score({.x = x.data(),
               .rows = rows,
               .now_us = c.Read<int64_t>("in.now")[0] * 1'000'000,
               .tie = c.Read<int64_t>("in.tie_F")[0],
               .kv = &kv,
               .visible_rows = visible,
               .logits = logits.data(),
               .trace = &trace},
              pool);
  ExpectClose(c, "out.logit", logits);
  std::vector<float> p;
  for (float logit : logits) p.push_back(1 / (1 + std::exp(-logit)));
  ExpectClose(c, "out.p", p);
  for (size_t i = 0; i < c.channels; ++i) {
    ExpectClose(c, absl::StrCat("out.attend_F.l0.c", i), trace.attend[i]);
    std::vector<float> lse(trace.lse[i].size());  // [M][H] -> [H][M]
    const size_t heads = static_cast<size_t>(c.config.heads);
    for (size_t r = 0; r < rows; ++r) {
      for (size_t h = 0; h < heads; ++h) lse[h * rows + r] = trace.lse[i][r * heads + h];
    }
    ExpectClose(c, absl::StrCat("out.lse_F.l0.c", i), lse);
    ExpectClose(c, absl::StrCat("out.F_final.", i), trace.final[i]);
  }
}

void ReproduceTheOracle(Case c, Dtype precision) {
  c.precision = precision;
  auto stack = Stack::Load(c.config, c.tensors, precision);
  ASSERT_TRUE(stack.ok()) << stack.status();
  ThreadPool pool(2);
  for (const KernelTable* table : AllKernels()) {
    SCOPED_TRACE(table->target);
    ScopedKernels scope(*table);
    for (size_t step : {size_t{1} << 30, size_t{1}, size_t{7}}) {
      SCOPED_TRACE(absl::StrCat("appended ", step, " rows at a time"));
      CpuUserKv kv(stack->page_shape(), static_cast<int>(c.channels), c.config.layers);
      History history = LoadHistory(c);
      for (size_t from = 0; from < c.longest; from += step) AppendRows(*stack, from, from + step, &pool, &history, &kv);
      for (size_t i = 0; i < c.channels; ++i) ExpectClose(c, absl::StrCat("out.P_final.", i), history.x[i]);
      CheckKv(c, kv);
      CheckScores(c, *stack, kv, &pool);
    }
  }
}

class ConformanceTest : public ::testing::TestWithParam<std::string> {};

TEST_P(ConformanceTest, EveryTargetReproducesTheOracle) { ReproduceTheOracle(LoadCase(GetParam()), Dtype::kF32); }

TEST_P(ConformanceTest, EveryTargetIsNearTheOracleInBf16) { ReproduceTheOracle(LoadCase(GetParam()), Dtype::kBf16); }

INSTANTIATE_TEST_SUITE_P(Grab, ConformanceTest, ::testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param; });

// The suite above is empty, and passes, where the folder is not found: this one then fails.
TEST(ConformanceFiles, AllFourteenCasesAreThere) { EXPECT_GE(Cases().size(), 14u); }

}  // namespace
}  // namespace backstory::grab
