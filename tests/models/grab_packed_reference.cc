// PackedLogits of grab_fixture.h: float64, dense masks, nothing shared with models/grab.
#include <cmath>
#include <functional>
#include <string>

#include "features/tokenizer.h"
#include "tests/models/grab_fixture.h"

namespace backstory::grab {
namespace {

using Row = std::vector<double>;
using Rows = std::vector<Row>;

struct Net {
  const Config& c;
  const TensorMap& tensors;

  const float* T(const std::string& name) const { return tensors.Find(name)->data; }
  size_t Columns(const std::string& name) const { return static_cast<size_t>(tensors.Find(name)->shape.back()); }

  Row Times(const Row& x, const std::string& w, const std::string& b = "") const {
    const size_t n = Columns(w);
    Row y(n, 0);
    for (size_t i = 0; i < x.size(); ++i) {
      for (size_t j = 0; j < n; ++j) y[j] += x[i] * T(w)[i * n + j];
    }
    if (!b.empty()) {
      for (size_t j = 0; j < n; ++j) y[j] += T(b)[j];
    }
    return y;
  }
  Row LayerNorm(const Row& x, const std::string& name) const {
    double mean = 0, var = 0;
    for (double v : x) mean += v / static_cast<double>(x.size());
    for (double v : x) var += (v - mean) * (v - mean) / static_cast<double>(x.size());
    Row y(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      y[i] = (x[i] - mean) / std::sqrt(var + 1e-5) * T(name + ".g")[i] + T(name + ".b")[i];
    }
    return y;
  }
  static Row Relu(Row x) {
    for (double& v : x) v = std::max(v, 0.0);
    return x;
  }
  static double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

  // The tokenizer network on the columns of v in configuration order.
  Row Token(const Row& v, const std::string& view) const {
    const Row unit = LayerNorm(v, view + "ln");
    Row e = Times(Relu(Times(unit, view + "w1", view + "b1")), view + "w2", view + "b2");
    const Row gate = Times(unit, view + "wg", view + "bg");
    for (size_t i = 0; i < e.size(); ++i) e[i] *= Sigmoid(gate[i]);
    return e;
  }
  void Pool(const SparseFieldConfig& field, const SparseColumn& column, size_t row, Row* v) const {
    for (int i = 0; i < c.embedding; ++i) {
      double sum = 0;
      for (uint32_t at = column.offsets[row]; at < column.offsets[row + 1]; ++at) {
        sum += T("tok.table." +
                 field.table)[column.ids[at] * static_cast<uint32_t>(c.embedding) + static_cast<uint32_t>(i)];
      }
      v->push_back(sum);
    }
  }
  Row Partial(const TokenColumns& tokens, size_t row) const {
    Row v;
    for (size_t f = 0; f < c.tokenizer.partial.size(); ++f) Pool(c.tokenizer.partial[f], tokens.sparse[f], row, &v);
    return Token(v, "tok.p.");
  }
  Row Full(const CandidateTokens& tokens) const {
    Row v;
    size_t user = 0, item = 0;
    for (const auto& field : c.tokenizer.full) {
      const bool u = IsUserSide(field);
      Pool(field, u ? tokens.user.sparse[user++] : tokens.item.sparse[item++], 0, &v);
    }
    user = item = 0;
    for (const auto& field : c.tokenizer.full_dense) {
      v.push_back(IsUserSide(field) ? tokens.user.dense[user++] : tokens.item.dense[item++]);
    }
    return Token(v, "tok.f.");
  }
  double Bucket(int64_t age_us) const {
    return std::min(c.n_time - 1.0, std::floor(std::log(std::max(1.0, static_cast<double>(age_us) / 1e6)) / 0.301));
  }
};

// One visible key of one query.
struct Key {
  const Row* k;
  const Row* v;
  size_t rank, time, action;
};

Row Attend(const Net& net, const std::string& p, const Row& q, const std::vector<Key>& keys) {
  const size_t heads = static_cast<size_t>(net.c.heads), width = static_cast<size_t>(net.c.d_head);
  Row o(heads * width, 0);
  for (size_t h = 0; h < heads; ++h) {
    Row weights;
    double total = 0;
    for (const Key& key : keys) {
      double w = 0;
      for (size_t i = 0; i < width; ++i) {
        w += q[h * width + i] * ((*key.k)[h * width + i] + net.T(p + "bpos")[key.rank * width + i] +
                                 net.T(p + "btime")[key.time * width + i] + net.T(p + "bact")[key.action * width + i]);
      }
      weights.push_back(std::exp(w / std::sqrt(static_cast<double>(width))));
      total += weights.back();
    }
    for (size_t j = 0; j < keys.size(); ++j) {
      for (size_t i = 0; i < width; ++i) o[h * width + i] += weights[j] / total * (*keys[j].v)[h * width + i];
    }
  }
  return o;
}

Row Finish(const Net& net, const std::string& p, Row x, const Row& o) {
  const Row out = net.Times(o, p + "wo");
  for (size_t i = 0; i < x.size(); ++i) x[i] += out[i];
  if (net.c.norm == Norm::kPost) x = net.LayerNorm(x, p + "n1");
  const Row in = net.c.norm == Norm::kPre ? net.LayerNorm(x, p + "n2") : x;
  const Row f = net.Times(Net::Relu(net.Times(in, p + "w1", p + "b1")), p + "w2", p + "b2");
  for (size_t i = 0; i < x.size(); ++i) x[i] += f[i];
  return net.c.norm == Norm::kPost ? net.LayerNorm(x, p + "n2") : x;
}

struct Projected {
  Rows q, k, v;
};

Projected Project(const Net& net, const std::string& p, const Rows& x) {
  Projected out;
  for (const Row& row : x) {
    Row z = net.c.norm == Norm::kPre ? net.LayerNorm(row, p + "n1") : row;
    if (net.c.latent > 0) z = net.Times(z, p + "wd");
    out.q.push_back(net.Times(z, p + "wq"));
    out.k.push_back(net.Times(z, p + "wk"));
    out.v.push_back(net.Times(z, p + "wv"));
  }
  return out;
}

void Mix(const Net& net, size_t layer, std::vector<Rows>* f) {
  const std::string gate = "w.l" + std::to_string(layer) + ".gate.";
  for (size_t t = 0; t < (*f)[0].size(); ++t) {
    Row all;
    for (const Rows& channel : *f) all.insert(all.end(), channel[t].begin(), channel[t].end());
    const Row beta = net.Times(all, gate + "w", gate + "b");
    for (size_t c = 0; c < f->size(); ++c) {
      for (size_t from = 0; from < f->size(); ++from) {
        for (size_t i = 0; from != c && i < (*f)[c][t].size(); ++i) {
          (*f)[c][t][i] += Net::Sigmoid(beta[from]) * all[from * (*f)[c][t].size() + i];
        }
      }
    }
  }
}

void Layer(const Net& net, const std::string& p, const ChannelRows& h, std::span<const Target> targets, Rows* x,
           Rows* f) {
  const Config& c = net.c;
  const Projected hp = Project(net, p, *x), fp = Project(net, p, *f);
  const size_t top = static_cast<size_t>(c.n_pos - 1);
  const auto inside = [&](int64_t age_us) { return age_us <= c.window_sec * 1'000'000; };
  Rows new_x, new_f;
  for (size_t i = 0; i < x->size(); ++i) {
    std::vector<Key> keys;
    for (size_t j = 0; j <= i; ++j) {
      const int64_t age = h.time_us[i] - h.time_us[j];
      const bool seen = j == i || (h.tie[j] != h.tie[i] && static_cast<int64_t>(i - j) <= c.window_rows && inside(age));
      if (!seen) continue;
      keys.push_back({&hp.k[j], &hp.v[j], std::min(i - j, top), static_cast<size_t>(net.Bucket(age)),
                      static_cast<size_t>(h.action[j])});
    }
    new_x.push_back(Finish(net, p, (*x)[i], Attend(net, p, hp.q[i], keys)));
  }
  for (size_t t = 0; t < targets.size(); ++t) {
    std::vector<Key> keys{{&fp.k[t], &fp.v[t], 0, 0, static_cast<size_t>(c.n_act - 1)}};
    size_t rank = 0;
    for (size_t j = x->size(); j-- > 0;) {
      const int64_t age = targets[t].now_us - h.time_us[j];
      if (age <= 0 || (targets[t].tie != -1 && h.tie[j] == targets[t].tie) || !inside(age)) continue;
      if (static_cast<int64_t>(++rank) > c.window_rows) break;
      keys.push_back({&hp.k[j], &hp.v[j], std::min(rank, top), static_cast<size_t>(net.Bucket(age)),
                      static_cast<size_t>(h.action[j])});
    }
    new_f.push_back(Finish(net, p, (*f)[t], Attend(net, p, fp.q[t], keys)));
  }
  *x = std::move(new_x);
  *f = std::move(new_f);
}

}  // namespace

std::vector<std::vector<double>> PackedLogits(const Config& config, const TensorMap& tensors,
                                              std::span<const ChannelRows> history, std::span<const Target> targets) {
  const Net net{config, tensors};
  std::vector<Rows> x(history.size()), f(history.size());
  for (size_t c = 0; c < history.size(); ++c) {
    for (size_t i = 0; i < history[c].time_us.size(); ++i) x[c].push_back(net.Partial(history[c].tokens, i));
    for (const Target& target : targets) f[c].push_back(net.Full(*target.candidates));
  }
  for (int l = 0; l < config.layers; ++l) {
    if (config.target_mixing) Mix(net, static_cast<size_t>(l), &f);
    for (size_t c = 0; c < history.size(); ++c) {
      Layer(net, "w.l" + std::to_string(l) + ".c" + std::to_string(c) + ".", history[c], targets, &x[c], &f[c]);
    }
  }
  std::vector<std::vector<double>> logits;
  for (size_t t = 0; t < targets.size(); ++t) {
    Row all;
    for (const Rows& channel : f) all.insert(all.end(), channel[t].begin(), channel[t].end());
    logits.push_back(net.Times(Net::Relu(net.Times(all, "w.head.w1", "w.head.b1")), "w.head.w2", "w.head.b2"));
  }
  return logits;
}

}  // namespace backstory::grab
