"""GRAB in PyTorch, term by term as tests/conformance/grab/README.md defines it. Start here in models/training.

Two forms of the same function:
- `packed`: every labelled event of every user of a batch is a target at once (training). Rows are padded per user.
- `encode_history` + `score`: one user, cached K/V, one request (serving). It is what the C++ engine computes.

Both must agree to rounding; tests/training/twin_test.py checks it in float64.

Parameters carry the names of the weight file (models/training/config.py lists them with shapes). torch refuses dots in
parameter names, so the module stores "." as ":".
"""
import math

import numpy as np
import torch
import torch.nn.functional as F

_EPS = 1e-5
_MICRO = 1_000_000


def time_bucket(delta_us, n_time):
    """Log-time bucket of a non-negative age in microseconds: min(n_time - 1, floor(ln(max(1, seconds)) / 0.301))."""
    seconds = torch.clamp(delta_us.to(torch.float64) / _MICRO, min=1.0)
    return torch.clamp(torch.floor(torch.log(seconds) / 0.301).to(torch.int64), max=n_time - 1)


class Grab(torch.nn.Module):
    """One GRAB model. `config` is models.training.config.Config; `shapes` maps tensor names to shapes."""
    form = "packed"

    def __init__(self, config, shapes, seed=0, dropout=0.0, embedding_dropout=0.0, embedding_std=0.05):
        super().__init__()
        self.config = config
        self.dropout = dropout
        self.embedding_dropout = embedding_dropout
        self.weights = torch.nn.ParameterDict()
        generator = torch.Generator().manual_seed(seed)
        for name in sorted(shapes):
            value = _initial(name, shapes[name], generator, embedding_std)
            self.weights[name.replace(".", ":")] = torch.nn.Parameter(value)

    def w(self, name):
        return self.weights[name.replace(".", ":")]

    def named_weights(self):
        return {name.replace(":", "."): value for name, value in self.weights.items()}

    def load_weights(self, tensors):
        """Copies numpy arrays or torch tensors by name; every tensor must be there with its shape."""
        for name, parameter in self.named_weights().items():
            value = torch.as_tensor(np.array(tensors[name]) if isinstance(tensors[name], np.ndarray) else tensors[name])
            if tuple(value.shape) != tuple(parameter.shape):
                raise ValueError(f"tensor {name}: shape {tuple(value.shape)}, expected {tuple(parameter.shape)}")
            with torch.no_grad():
                parameter.copy_(value)

    # ---- tokenizer network -------------------------------------------------------------------------------------

    def embed(self, view, ids, dense=None):
        """Token rows of one view ("p" or "f"): ids = {field name: int64 [n, slots], -1 = none}, dense [n, width]."""
        parts = []
        for field in self.config.fields(view):
            table = self.w(f"tok.table.{field.table}")
            index = ids[field.name]
            if table.requires_grad and self.training and self.embedding_dropout > 0:
                keep = torch.rand(index.shape[:-1], device=index.device) >= self.embedding_dropout
                index = torch.where(keep.unsqueeze(-1), index, torch.full_like(index, -1))
            rows = F.embedding(index.clamp(min=0), table)
            parts.append((rows * (index >= 0).unsqueeze(-1).to(rows.dtype)).sum(-2))
        if dense is not None and dense.shape[-1] > 0:
            parts.append(dense)
        v = torch.cat(parts, -1)
        z = F.layer_norm(v, v.shape[-1:], self.w(f"tok.{view}.ln.g"), self.w(f"tok.{view}.ln.b"), _EPS)
        hidden = self._drop(torch.relu(z @ self.w(f"tok.{view}.w1") + self.w(f"tok.{view}.b1")))
        gate = torch.sigmoid(z @ self.w(f"tok.{view}.wg") + self.w(f"tok.{view}.bg"))
        return (hidden @ self.w(f"tok.{view}.w2") + self.w(f"tok.{view}.b2")) * gate

    # ---- pieces shared by both forms ---------------------------------------------------------------------------

    def _drop(self, x):
        return F.dropout(x, self.dropout, self.training) if self.dropout > 0 else x

    def _norm(self, prefix, which, x):
        return F.layer_norm(x, x.shape[-1:], self.w(f"{prefix}.{which}.g"), self.w(f"{prefix}.{which}.b"), _EPS)

    def _project(self, prefix, x):
        """q, k, v of rows x [..., n, d], each [..., H, n, d_head]."""
        z = self._norm(prefix, "n1", x) if self.config.norm == "pre" else x
        if self.config.latent > 0:
            z = z @ self.w(f"{prefix}.wd")
        shape = z.shape[:-1] + (self.config.heads, self.config.d_head)
        return tuple((z @ self.w(f"{prefix}.{m}")).reshape(shape).transpose(-2, -3) for m in ("wq", "wk", "wv"))

    def _finish(self, prefix, x, o):
        """The layer after attention: x [..., n, d] the (mixed) input rows, o [..., H, n, d_head]."""
        o = o.transpose(-2, -3).reshape(x.shape[:-1] + (self.config.heads * self.config.d_head,))
        y = x + self._drop(o @ self.w(f"{prefix}.wo"))
        if self.config.norm == "pre":
            return y + self._drop(self._ffn(prefix, self._norm(prefix, "n2", y)))
        y = self._norm(prefix, "n1", y)
        return self._norm(prefix, "n2", y + self._drop(self._ffn(prefix, y)))

    def _ffn(self, prefix, x):
        hidden = torch.relu(x @ self.w(f"{prefix}.w1") + self.w(f"{prefix}.b1"))
        return hidden @ self.w(f"{prefix}.w2") + self.w(f"{prefix}.b2")

    def _mix(self, layer, rows):
        """Target-token mixing of the C copies `rows` of the candidates, each [..., n, d]."""
        if not self.config.target_mixing:
            return rows
        logits = torch.cat(rows, -1) @ self.w(f"w.l{layer}.gate.w") + self.w(f"w.l{layer}.gate.b")
        beta = torch.sigmoid(logits)
        weighted = [beta[..., i:i + 1] * row for i, row in enumerate(rows)]
        total = sum(weighted)
        return [row + (total - weighted[i]) for i, row in enumerate(rows)]

    def _head(self, rows):
        hidden = torch.relu(torch.cat(rows, -1) @ self.w("w.head.w1") + self.w("w.head.b1"))
        return self._drop(hidden) @ self.w("w.head.w2") + self.w("w.head.b2")

    def logits(self, data, batch):
        """Logits [B, T] of the first task for a packed batch of a data set (models/training/shards.py)."""
        x_p, index = [], []
        for c, p in enumerate(batch.p):
            x_p.append(self._drop(self.embed("p", {k: v[p["rows"]] for k, v in data.ids[f"p{c}"].items()})
                                  if len(data.rows[c]["tie"]) else self._no_rows(p["rows"].shape)))
            index.append(PackedIndex(self.config, p, batch.f))
        rows = batch.f["rows"]
        x_f = self.embed("f", {k: v[rows] for k, v in data.ids["f"].items()}, data.dense[rows])
        return self.packed(x_p, self._drop(x_f), index)[..., 0]

    def _no_rows(self, shape):
        return self.w("w.head.w1").new_zeros(shape + (self.config.d,))

    # ---- packed form -------------------------------------------------------------------------------------------

    def packed(self, x_p, x_f, index):
        """Logits [B, T, tasks] of all targets.

        x_p: per channel [B, N_c, d]; x_f [B, T, d]; index: per channel PackedIndex (packed_index below).
        """
        rows = [x_f] * len(x_p)
        for layer in range(self.config.layers):
            rows = self._mix(layer, rows)
            last = layer + 1 == self.config.layers
            next_p, next_f = [], []
            for c, x in enumerate(x_p):
                prefix = f"w.l{layer}.c{c}"
                q, k, v = self._project(prefix, x)
                keys = k + F.embedding(index[c].action, self.w(f"{prefix}.bact")).unsqueeze(1)
                q_f, k_f, v_f = self._project(prefix, rows[c])
                own = k_f + self._self_bias(prefix)
                o = self._attend(prefix, q_f, keys, v, index[c].f, own, v_f)
                next_f.append(self._finish(prefix, rows[c], o))
                if not last:
                    o = self._attend(prefix, q, keys, v, index[c].p)
                    next_p.append(self._finish(prefix, x, o))
            x_p, rows = next_p if not last else x_p, next_f
        return self._head(rows)

    def _self_bias(self, prefix):
        return (self.w(f"{prefix}.bpos")[0] + self.w(f"{prefix}.btime")[0] +
                self.w(f"{prefix}.bact")[self.config.n_act - 1])

    def _attend(self, prefix, q, keys, v, relation, self_key=None, v_self=None):
        """Softmax attention. q [B, H, T, dh]; keys, v [B, H, N, dh]; relation: Relation of T queries and N keys."""
        q = q / math.sqrt(self.config.d_head)
        s = relation.add_bias(q @ keys.transpose(-1, -2), q @ self.w(f"{prefix}.bpos").t(),
                              q @ self.w(f"{prefix}.btime").t())
        if self_key is None:
            return torch.softmax(s, -1) @ v
        p = torch.softmax(torch.cat([(q * self_key).sum(-1, keepdim=True), s], -1), -1)
        return p[..., 1:] @ v + p[..., :1] * v_self

    # ---- serving form ------------------------------------------------------------------------------------------

    def encode_history(self, x_p, time_us, action, tie):
        """K/V of one user: per layer and channel (k, v), each [H, N_c, d_head], no bias folded; and the final rows."""
        cache = []
        for layer in range(self.config.layers):
            entries, next_x = [], []
            for c, x in enumerate(x_p):
                prefix = f"w.l{layer}.c{c}"
                n = x.shape[0]
                q, k, v = self._project(prefix, x)
                i, j = torch.arange(n).unsqueeze(1), torch.arange(n).unsqueeze(0)
                age = time_us[c].unsqueeze(1) - time_us[c].unsqueeze(0)
                seen = (j < i) & (tie[c].unsqueeze(1) != tie[c].unsqueeze(0)) & (i - j <= self.config.window_rows)
                seen = (seen & (age <= self.config.window_sec * _MICRO)) | (i == j)
                bias = (self.w(f"{prefix}.bpos")[(i - j).clamp(0, self.config.n_pos - 1)] +
                        self.w(f"{prefix}.btime")[time_bucket(age.clamp(min=0), self.config.n_time)] +
                        self.w(f"{prefix}.bact")[action[c]].unsqueeze(0))
                s = torch.einsum("hid,hjd->hij", q, k) + torch.einsum("hid,ijd->hij", q, bias)
                s = (s / math.sqrt(self.config.d_head)).masked_fill(~seen, -math.inf)
                entries.append((k, v))
                next_x.append(self._finish(prefix, x, torch.softmax(s, -1) @ v))
            cache.append(entries)
            x_p = next_x
        return cache, x_p

    def score(self, cache, x_f, time_us, action, tie, now_us, tie_f, closed_us=None, trace=None):
        """Logits [M, tasks] of candidates x_f [M, d] of one request at now_us with tie group tie_f.

        `trace`, a dict, receives layer 0's attention output and log-sum-exp per channel, and the final rows.
        """
        rows = [x_f] * len(time_us)
        for layer in range(self.config.layers):
            rows = self._mix(layer, rows)
            next_rows = []
            for c, x in enumerate(rows):
                prefix = f"w.l{layer}.c{c}"
                seen, rank = visible_rows(time_us[c], tie[c], now_us, tie_f, self.config,
                                          None if closed_us is None else closed_us[c])
                k, v = cache[layer][c]
                k, v = k[:, seen], v[:, seen]
                folded = (k + self.w(f"{prefix}.bpos")[rank.clamp(max=self.config.n_pos - 1)] +
                          self.w(f"{prefix}.btime")[time_bucket(now_us - time_us[c][seen], self.config.n_time)] +
                          self.w(f"{prefix}.bact")[action[c][seen]])
                q, k_self, v_self = self._project(prefix, x)
                own = (q * (k_self + self._self_bias(prefix))).sum(-1, keepdim=True)
                s = torch.cat([own, q @ folded.transpose(-1, -2)], -1) / math.sqrt(self.config.d_head)
                p = torch.softmax(s, -1)
                o = p[..., 1:] @ v + p[..., :1] * v_self
                if trace is not None and layer == 0:
                    trace[f"attend_F.l0.c{c}"] = o.transpose(0, 1)
                    trace[f"lse_F.l0.c{c}"] = torch.logsumexp(s, -1)
                next_rows.append(self._finish(prefix, x, o))
            rows = next_rows
        if trace is not None:
            for c, row in enumerate(rows):
                trace[f"F_final.{c}"] = row
        return self._head(rows)


def visible_rows(time_us, tie, now_us, tie_f, config, closed_us=None):
    """Rows of one channel that a request at now_us attends, oldest first, and their ranks (newest = 1)."""
    seen = (time_us < now_us) & (tie != tie_f) & (now_us - time_us <= config.window_sec * _MICRO)
    if closed_us is not None:
        seen = seen & (closed_us <= now_us)
    index = torch.nonzero(seen).flatten()
    index = index[max(0, index.numel() - config.window_rows):]
    rank = torch.arange(index.numel(), 0, -1)
    return index, rank


class Relation:
    """Position bucket, time bucket and visibility of keys [N] as queries [T] see them; each [B, T, N].

    Both buckets never rise from one key to the next newer one. That makes the gradient of a gathered bias a difference
    of two prefix sums per bucket, where scatter-add would have most keys of a long history collide in one bucket.
    """

    def __init__(self, pos, time, seen, n_pos, n_time):
        self.pos, self.time, self.hidden = pos, time, ~seen
        self.pos_ends, self.time_ends = _bucket_ends(pos, n_pos), _bucket_ends(time, n_time)

    def add_bias(self, s, by_pos, by_time):
        """s [B, H, T, N] + by_pos [B, H, T, n_pos] and by_time [B, H, T, n_time] of each key's bucket, or -inf."""
        return _AddBias.apply(s, by_pos, by_time, self)


def _bucket_ends(bucket, count):
    """[B, T, count + 1]: how many keys have a bucket >= p, for p = 0..count."""
    wanted = -torch.arange(count + 1, device=bucket.device).expand(bucket.shape[:-1] + (count + 1,))
    return torch.searchsorted(-bucket.contiguous(), wanted.contiguous(), right=True)


class _AddBias(torch.autograd.Function):

    @staticmethod
    def forward(ctx, s, by_pos, by_time, relation):
        ctx.relation, ctx.heads = relation, s.shape[1]
        out = s + torch.gather(by_pos, -1, relation.pos.unsqueeze(1).expand(s.shape))
        out += torch.gather(by_time, -1, relation.time.unsqueeze(1).expand(s.shape))
        return out.masked_fill_(relation.hidden.unsqueeze(1), -math.inf)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.masked_fill(ctx.relation.hidden.unsqueeze(1), 0.0)
        sums = torch.nn.functional.pad(torch.cumsum(grad, -1), (1, 0))

        def per_bucket(ends):
            at = torch.gather(sums, -1, ends.unsqueeze(1).expand(ends.shape[:1] + (ctx.heads,) + ends.shape[1:]))
            return at[..., :-1] - at[..., 1:]

        return grad, per_bucket(ctx.relation.pos_ends), per_bucket(ctx.relation.time_ends), None


class PackedIndex:
    """What one channel's attention needs beside the rows: relations `f` (targets to rows), `p` (rows to rows), and the
    rows' action classes [B, N]. Built once per batch, used by all layers and heads.
    """

    def __init__(self, config, p, f):
        """p: dict of valid, time_us, tie, closed_us, action, each [B, N]; f: time_us, tie, each [B, T].

        Padding stands behind the newest row and repeats it, so that time never falls from one row to the next.
        """
        n = p["time_us"].shape[1]
        device = p["time_us"].device
        window_us = config.window_sec * _MICRO
        self.action = p["action"]
        age = f["time_us"].unsqueeze(2) - p["time_us"].unsqueeze(1)
        seen = (p["valid"].unsqueeze(1) & (age > 0) & (f["tie"].unsqueeze(2) != p["tie"].unsqueeze(1)) &
                (p["closed_us"].unsqueeze(1) <= f["time_us"].unsqueeze(2)) & (age <= window_us))
        rank = seen.to(torch.int32).flip(-1).cumsum(-1).flip(-1)
        self.f = Relation(rank.clamp(max=config.n_pos - 1).to(torch.int64),
                          time_bucket(age.clamp(min=0), config.n_time),
                          seen & (rank <= config.window_rows), config.n_pos, config.n_time)

        i = torch.arange(n, device=device)
        distance = i.unsqueeze(1) - i.unsqueeze(0)
        age = p["time_us"].unsqueeze(2) - p["time_us"].unsqueeze(1)
        seen = ((distance > 0) & (distance <= config.window_rows)).unsqueeze(0) & p["valid"].unsqueeze(1)
        seen = seen & (p["tie"].unsqueeze(2) != p["tie"].unsqueeze(1)) & (age <= window_us)
        self.p = Relation(distance.clamp(0, config.n_pos - 1).unsqueeze(0).expand(age.shape),
                          time_bucket(age.clamp(min=0), config.n_time), seen | (distance == 0).unsqueeze(0),
                          config.n_pos, config.n_time)


def _initial(name, shape, generator, embedding_std):
    """Start values: Xavier for matrices, ones and zeros for norms, small normals for tables and codebooks."""
    leaf = name.rsplit(".", 1)[-1]
    if name.startswith("tok.table."):
        return torch.randn(shape, generator=generator) * embedding_std
    if leaf in ("bpos", "btime", "bact"):
        return torch.randn(shape, generator=generator) * 0.02
    if leaf == "g":
        return torch.ones(shape)
    if len(shape) == 1 or (leaf == "w" and ".gate." in name):
        return torch.full(shape, -2.0) if name.endswith(".gate.b") else torch.zeros(shape)
    bound = math.sqrt(6.0 / (shape[0] + shape[1]))
    return (torch.rand(shape, generator=generator) * 2 - 1) * bound
