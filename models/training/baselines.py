"""The rankers a GRAB version is compared with, on the same tokens: bias regression, DIN, an HSTU-style ranker.

Each is a ranker in the sense of models/training/trainer.py. They read the same fields as GRAB.
"""
import math

import torch
import torch.nn.functional as F

from models.training import twin


def _table(vocab, width, generator, std):
    return torch.nn.Parameter(torch.randn(vocab, width, generator=generator) * std)


def _tables(config, views, width, generator, std):
    vocabs = {field.table: field.vocab for view in views for field in config.fields(view)}
    return torch.nn.ParameterDict({f"table_{name}": _table(vocabs[name], width, generator, std)
                                   for name in sorted(vocabs)})


def _pool(tables, fields, ids, drop, training):
    """Concatenated sum-pooled embeddings [..., fields * width]."""
    parts = []
    for field in fields:
        index = ids[field.name]
        if training and drop > 0:
            keep = torch.rand(index.shape[:-1], device=index.device) >= drop
            index = torch.where(keep.unsqueeze(-1), index, torch.full_like(index, -1))
        rows = F.embedding(index.clamp(min=0), tables[f"table_{field.table}"])
        parts.append((rows * (index >= 0).unsqueeze(-1).to(rows.dtype)).sum(-2))
    return torch.cat(parts, -1)


class Popularity(torch.nn.Module):
    """The item's smoothed rate strictly before now; nothing is learned."""
    form, history = "samples", 0

    def __init__(self, config, column="item_rate"):
        super().__init__()
        self.column = config.dense.index(column)

    def logits(self, data, batch):
        return data.dense[batch.index, self.column]


class BiasRegression(torch.nn.Module):
    """Logistic regression: a bias per user and per item, and the dense user and item statistics (no crosses)."""
    form, history = "samples", 0

    def __init__(self, config, crossed=("category_rate",), seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.fields = [field for field in config.full if field.name in ("user", "item")]
        self.tables = torch.nn.ParameterDict(
            {f"table_{f.name}": _table(f.vocab, 1, generator, 0.0) for f in self.fields})
        self.columns = [i for i, name in enumerate(config.dense) if name not in crossed]
        self.weight = torch.nn.Parameter(torch.zeros(len(self.columns), 1))
        self.bias = torch.nn.Parameter(torch.zeros(1))

    def logits(self, data, batch):
        z = (data.dense[batch.index][:, self.columns] @ self.weight).squeeze(-1) + self.bias
        for field in self.fields:
            ids = data.ids["f"][field.name][batch.index]
            rows = F.embedding(ids.clamp(min=0), self.tables[f"table_{field.name}"]).squeeze(-1)
            z = z + (rows * (ids >= 0)).sum(-1)
        return z


class Din(torch.nn.Module):
    """Deep Interest Network (Zhou et al., 2018): an attention unit scores each past event against the candidate."""
    form = "samples"

    def __init__(self, config, history=100, unit=24, attention_hidden=36, hidden=(80, 40), dropout=0.1,
                 embedding_dropout=0.0, embedding_std=0.05, seed=0):
        super().__init__()
        self.config, self.history, self.dropout = config, history, dropout
        self.embedding_dropout = embedding_dropout
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        self.tables = _tables(config, "pf", config.embedding, generator, embedding_std)
        wide_p, wide_f = len(config.partial) * config.embedding, len(config.full) * config.embedding
        self.key = torch.nn.Linear(wide_p, unit)
        self.query = torch.nn.Linear(wide_f, unit)
        self.score = torch.nn.Sequential(torch.nn.Linear(4 * unit, attention_hidden), torch.nn.PReLU(),
                                         torch.nn.Linear(attention_hidden, 1))
        widths = [unit + wide_f + len(config.dense)] + list(hidden)
        layers = [torch.nn.LayerNorm(widths[0])]
        for a, b in zip(widths[:-1], widths[1:]):
            layers += [torch.nn.Linear(a, b), torch.nn.PReLU(), torch.nn.Dropout(dropout)]
        self.top = torch.nn.Sequential(*layers, torch.nn.Linear(widths[-1], 1))

    def logits(self, data, batch):
        config, drop = self.config, self.embedding_dropout
        past = _pool(self.tables, config.partial, {k: v[batch.rows] for k, v in data.ids["p0"].items()}, drop,
                     self.training)
        item = _pool(self.tables, config.full, {k: v[batch.index] for k, v in data.ids["f"].items()}, drop,
                     self.training)
        key = self.key(F.dropout(past, self.dropout, self.training))
        query = self.query(F.dropout(item, self.dropout, self.training)).unsqueeze(1).expand(key.shape)
        weight = self.score(torch.cat([query, key, query - key, query * key], -1)).squeeze(-1)
        weight = weight * batch.valid.to(weight.dtype) / math.sqrt(max(1, self.history))
        pooled = (weight.unsqueeze(-1) * key).sum(1)
        return self.top(torch.cat([pooled, item, data.dense[batch.index]], -1)).squeeze(-1)


class Hstu(torch.nn.Module):
    """An HSTU-style ranker (Zhai et al., 2024): SiLU attention with scalar position and time bias, gated by U.

    It uses the twin's tokenizer network and visibility, one channel of all rows; targets see history and themselves.
    """
    form = "packed"

    def __init__(self, config, shapes, layers=2, dropout=0.1, embedding_dropout=0.0, embedding_std=0.05, seed=0):
        super().__init__()
        self.config, self.layers, self.dropout = config, layers, dropout
        kept = {name: shape for name, shape in shapes.items() if name.startswith("tok.")}
        self.tokens = twin.Grab(config, kept, seed, dropout, embedding_dropout, embedding_std)
        torch.manual_seed(seed)
        d, wide = config.d, config.heads * config.d_head
        self.before = torch.nn.ModuleList(torch.nn.LayerNorm(d) for _ in range(layers))
        self.inner = torch.nn.ModuleList(torch.nn.Linear(d, 4 * wide) for _ in range(layers))
        self.after = torch.nn.ModuleList(torch.nn.LayerNorm(wide) for _ in range(layers))
        self.outer = torch.nn.ModuleList(torch.nn.Linear(wide, d) for _ in range(layers))
        self.position = torch.nn.Parameter(torch.zeros(layers, config.n_pos))
        self.time = torch.nn.Parameter(torch.zeros(layers, config.n_time))
        self.top = torch.nn.Sequential(torch.nn.LayerNorm(d), torch.nn.Linear(d, config.head_hidden), torch.nn.ReLU(),
                                       torch.nn.Dropout(dropout), torch.nn.Linear(config.head_hidden, 1))

    def _split(self, layer, x):
        parts = F.silu(self.inner[layer](self.before[layer](x))).chunk(4, -1)
        heads = [y.reshape(y.shape[:-1] + (self.config.heads, self.config.d_head)).transpose(-2, -3) for y in parts[1:]]
        return [parts[0]] + heads

    def _weights(self, layer, s, relation):
        """SiLU(s + scalar bias of position and time), 0 where hidden."""
        shape = s.shape[:1] + (1,) + s.shape[2:3]
        bias = relation.add_bias(torch.zeros_like(s[:, :1]), self.position[layer].expand(shape + (-1,)),
                                 self.time[layer].expand(shape + (-1,)))
        hidden = relation.hidden.unsqueeze(1)
        return F.silu(s + bias.masked_fill(hidden, 0.0)).masked_fill(hidden, 0.0)

    def _close(self, layer, x, u, o):
        o = o.transpose(-2, -3).reshape(u.shape)
        return x + self.outer[layer](F.dropout(self.after[layer](o) * u, self.dropout, self.training))

    def logits(self, data, batch):
        rows, p = batch.f["rows"], batch.p[0]
        x = self.tokens.embed("p", {k: v[p["rows"]] for k, v in data.ids["p0"].items()})
        f = self.tokens.embed("f", {k: v[rows] for k, v in data.ids["f"].items()}, data.dense[rows])
        x, f = (F.dropout(y, self.dropout, self.training) for y in (x, f))
        index = twin.PackedIndex(self.config, p, batch.f)
        scale = 1 / math.sqrt(self.config.d_head)
        for layer in range(self.layers):
            u, v, q, k = self._split(layer, x)
            u_f, v_f, q_f, k_f = self._split(layer, f)
            a = self._weights(layer, q_f @ k.transpose(-1, -2) * scale, index.f)
            own = F.silu((q_f * k_f).sum(-1, keepdim=True) * scale + self.position[layer][0] + self.time[layer][0])
            f = self._close(layer, f, u_f, a @ v + own * v_f)
            if layer + 1 < self.layers:
                x = self._close(layer, x, u, self._weights(layer, q @ k.transpose(-1, -2) * scale, index.p) @ v)
        return self.top(f).squeeze(-1)
