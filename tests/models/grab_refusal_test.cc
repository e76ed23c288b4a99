// What the model refuses, and what its state id depends on.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "models/grab/tensors.h"
#include "tests/models/grab_fixture.h"

namespace backstory::grab {
namespace {

using ::testing::Test;

class RefusalTest : public Test {
 protected:
  RefusalTest() : config_(SmallConfig({})), model_(MakeModel(config_, RandomTensors(config_, 1), nullptr)), random_(2) {
    for (int c = 0; c < 2; ++c) history_.push_back(RandomHistory(config_, 20, &random_));
    kv_ = model_->NewState();
  }
  void ExpectExtendRefused(const std::vector<ChannelRows>& rows, const std::string& part) {
    const absl::Status status = model_->Extend(rows, kv_.get());
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(std::string(status.message()).find(part), std::string::npos) << status;
    EXPECT_EQ(kv_->Rows(0), 0u) << "a refused call must leave nothing behind";
  }

  Config config_;
  std::unique_ptr<Model> model_;
  Random random_;
  std::vector<ChannelRows> history_;
  std::unique_ptr<UserKv> kv_;
};

TEST_F(RefusalTest, ExtendNamesWhatIsWrong) {
  ExpectExtendRefused({history_[0]}, "1 channels");
  const auto with = [&](const std::function<void(ChannelRows*)>& change) {
    std::vector<ChannelRows> rows = history_;
    change(&rows[1]);
    return rows;
  };
  ExpectExtendRefused(with([](ChannelRows* r) { r->action[3] = 5; }), "action class 5 of row 3");
  ExpectExtendRefused(with([](ChannelRows* r) { r->action[3] = -1; }), "action class -1");
  ExpectExtendRefused(with([](ChannelRows* r) { r->time_us[4] = 0; }), "time of row 4");
  ExpectExtendRefused(with([](ChannelRows* r) { r->tie.pop_back(); }), "different lengths");
  ExpectExtendRefused(with([](ChannelRows* r) { r->tokens.sparse.pop_back(); }), "2 sparse columns");
  ExpectExtendRefused(with([](ChannelRows* r) {
                        r->tokens.sparse[0].ids.push_back(50);
                        ++r->tokens.sparse[0].offsets.back();
                      }),
                      "id 50 of field 'item'");
  ExpectExtendRefused(with([](ChannelRows* r) { r->tokens.sparse[1].offsets[5] = 1000; }), "field 'category'");
  ExpectExtendRefused(with([](ChannelRows* r) { r->tokens.dense.push_back(1); }), "dense");
}

TEST_F(RefusalTest, ExtendRefusesRowsThatAreNotTheAppendedOnes) {
  ASSERT_TRUE(model_->Extend(history_, kv_.get()).ok());
  EXPECT_TRUE(model_->Extend(history_, kv_.get()).ok()) << "nothing to append is fine";
  std::vector<ChannelRows> shorter{Prefix(history_[0], 10), history_[1]};
  EXPECT_NE(model_->Extend(shorter, kv_.get()).message().find("truncate"), absl::string_view::npos);
  std::vector<ChannelRows> other = history_;
  other[0].time_us.back() += 1;
  EXPECT_EQ(model_->Extend(other, kv_.get()).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(RefusalTest, ScoreNamesWhatIsWrong) {
  ASSERT_TRUE(model_->Extend(history_, kv_.get()).ok());
  const CandidateTokens good = RandomCandidates(config_, 3, history_[0].time_us.back(), &random_);
  const std::vector<size_t> visible{20, 20}, too_many{20, 21}, one{20};
  std::vector<float> logits(3);
  const ScoreSegment segment{.kv = kv_.get(), .visible_rows = visible, .candidates = &good, .logits = logits.data()};
  ASSERT_TRUE(model_->Score({&segment, 1}).ok());
  const auto refused = [&](const std::function<void(ScoreSegment*)>& change, const std::string& part) {
    std::vector<ScoreSegment> two{segment, segment};
    change(&two[1]);
    const absl::Status status = model_->Score(two);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(std::string(status.message()).find("segment 1"), std::string::npos) << status;
    EXPECT_NE(std::string(status.message()).find(part), std::string::npos) << status;
  };
  refused([&](ScoreSegment* s) { s->visible_rows = too_many; }, "visible_rows 21 of channel 1");
  refused([&](ScoreSegment* s) { s->visible_rows = one; }, "visible_rows of 1 channels");
  refused([&](ScoreSegment* s) { s->first_row = one; }, "first_row of 1 channels");
  refused([&](ScoreSegment* s) { s->candidates = nullptr; }, "missing");
  refused([&](ScoreSegment* s) { s->logits = nullptr; }, "missing");
  refused([&](ScoreSegment* s) { s->explain_top = 1; }, "attributions");
  CandidateTokens bad = good;
  bad.item.dense[1] = NAN;
  refused([&](ScoreSegment* s) { s->candidates = &bad; }, "item side: a dense value is not finite");
  bad = good;
  bad.user.dense[0] = INFINITY;
  refused([&](ScoreSegment* s) { s->candidates = &bad; }, "user side: a dense value is not finite");
  bad = good;
  bad.user.sparse[0].ids = {20};
  bad.user.sparse[0].offsets = {0, 1};
  refused([&](ScoreSegment* s) { s->candidates = &bad; }, "id 20 of field 'f_user', vocab is 20");
  bad = good;
  bad.user.rows = 2;
  refused([&](ScoreSegment* s) { s->candidates = &bad; }, "2 user rows");
  EXPECT_TRUE(model_->Score({}).ok());
}

TEST(CreateModel, NamesAMissingOrMisshapenTensor) {
  const Config config = SmallConfig({.latent = 4});
  const TensorMap whole = RandomTensors(config, 3);
  for (const TensorSpec& spec : ExpectedTensors(config)) {
    for (const bool missing : {true, false}) {
      TensorMap tensors;
      for (const std::string& name : whole.Names()) {
        const TensorView& view = *whole.Find(name);
        std::vector<int64_t> shape = view.shape;
        std::vector<float> values(view.data, view.data + view.size);
        if (name == spec.name) {
          if (missing) continue;
          shape.push_back(1);
        }
        ASSERT_TRUE(tensors.Add(name, shape, values).ok());
      }
      const auto model = CreateModel(config, tensors, nullptr);
      ASSERT_FALSE(model.ok()) << spec.name;
      EXPECT_EQ(model.status().code(), missing ? absl::StatusCode::kNotFound : absl::StatusCode::kInvalidArgument);
      EXPECT_NE(std::string(model.status().message()).find(spec.name), std::string::npos) << model.status();
    }
  }
}

// K/V of the last layer need nothing of what comes after them; everything before them counts. A changed tensor changes
// the id exactly if it changes what is cached, checked on the cache itself through scores with the old candidates'
// weights.
TEST(StateId, ChangesWithExactlyTheTensorsThatKvDependsOn) {
  for (const Norm norm : {Norm::kPost, Norm::kPre}) {
    const Config config = SmallConfig({.norm = norm, .latent = 4});
    const TensorMap whole = RandomTensors(config, 4);
    const std::string id = MakeModel(config, whole, nullptr)->state_id();
    EXPECT_EQ(id.size(), 16u);
    EXPECT_EQ(MakeModel(config, RandomTensors(config, 4), nullptr)->state_id(), id);
    for (const TensorSpec& spec : ExpectedTensors(config)) {
      TensorMap tensors;
      for (const std::string& name : whole.Names()) {
        const TensorView& view = *whole.Find(name);
        std::vector<float> values(view.data, view.data + view.size);
        if (name == spec.name) values.back() += 0.5f;
        ASSERT_TRUE(tensors.Add(name, view.shape, values).ok());
      }
      const std::string& n = spec.name;
      bool matters = !n.starts_with("tok.f.") && !n.starts_with("w.head") && n.find(".gate.") == std::string::npos &&
                     n != "tok.table.user";
      if (n.starts_with("w.l1.")) {
        matters = n.ends_with("wd") || n.ends_with("wk") || n.ends_with("wv") || n.ends_with("bact") ||
                  (norm == Norm::kPre && n.find(".n1.") != std::string::npos);
        if (n.find(".gate.") != std::string::npos) matters = false;
      }
      EXPECT_EQ(MakeModel(config, tensors, nullptr)->state_id() != id, matters) << n;
    }
  }
}

TEST(StateId, ChangesWithTheSettingsThatRowsDependOn) {
  const Config config = SmallConfig({});
  const TensorMap tensors = RandomTensors(config, 5);
  const std::string id = MakeModel(config, tensors, nullptr)->state_id();
  const auto id_with = [&](const std::function<void(Config*)>& change) {
    Config changed = config;
    change(&changed);
    return MakeModel(changed, tensors, nullptr)->state_id();
  };
  EXPECT_EQ(id_with([](Config* c) { c->tasks = {"other"}; }), id);
  EXPECT_EQ(id_with([](Config* c) { c->name = "other"; }), id);
  EXPECT_EQ(id_with([](Config* c) { c->tokenizer.label.min_value = 3; }), id);
  EXPECT_EQ(id_with([](Config* c) { c->tokenizer.full_dense[0].prior = 0.1f; }), id);
  EXPECT_NE(id_with([](Config* c) { c->window_rows = 9; }), id);
  EXPECT_NE(id_with([](Config* c) { c->window_sec = 9; }), id);
  EXPECT_NE(id_with([](Config* c) { c->tokenizer.hash_salt = 9; }), id);
  EXPECT_NE(id_with([](Config* c) { c->tokenizer.label_window_us = 9; }), id);
  EXPECT_NE(id_with([](Config* c) { c->tokenizer.open_rows = OpenRows::kHide; }), id);
  EXPECT_NE(id_with([](Config* c) { c->tokenizer.actions[0].min_value = 2; }), id);
  EXPECT_NE(id_with([](Config* c) { c->tokenizer.channels[0].action_classes = {1}; }), id);
  EXPECT_NE(id_with([](Config* c) { c->tokenizer.partial[0].source = SparseSource::kItemYear; }), id);
}

}  // namespace
}  // namespace backstory::grab
