"""GLASS in PyTorch, term by term as tests/conformance/glass/README.md defines it. Start here in models/training/glass.

Two forms of the same function share every line of arithmetic:
- `encode` + `logits`: all positions of given targets at once (training, teacher forcing);
- `encode` + `memory_kv` + `decoder` with a cache: one position of many beams at a time (decode.py), as the engine
  computes it.

Parameters carry the names of the weight file (config.weight_shapes). torch refuses dots in parameter names, so the
module stores "." as ":". Matrices are [out, in].

Shapes: B users, T targets or beams of a user, P positions, H heads, S memory slots, R retrieved tokens, V vocabulary.
"""
import math

import numpy as np
import torch
import torch.nn.functional as F

from models.training.glass import config as glass_config

_EPS = 1e-6
_HIDDEN = -1e9


def relative_bucket(distance, buckets, distance_max):
    """Bucket of key slot - query slot, bidirectional: half the buckets for later keys, each half exact, then log."""
    half = buckets // 2
    exact = half // 2
    size = distance.abs()
    far = torch.log(size.clamp(min=1).to(torch.float32) / exact) / math.log(distance_max / exact) * (half - exact)
    far = (exact + far.to(torch.int64)).clamp(max=half - 1)
    return (distance > 0).to(torch.int64) * half + torch.where(size < exact, size, far)


def _softmax(scores, bias):
    """softmax(scores + bias) in the scores' own type: sums are fp32 inside, and bf16 training moves half the bytes."""
    with torch.autocast("cuda" if scores.is_cuda else "cpu", enabled=False):
        return torch.softmax(scores + bias.to(scores.dtype), -1)


class CountTable:
    """A retrieved set as counts of tokens: attention over the distinct tokens with bias log(count).

    counts [B, T, V] float; a row without any token stands for one pad, whose K and V give the constant of an empty
    bucket.
    """

    def __init__(self, counts):
        empty = counts.sum(-1, keepdim=True) == 0
        pad = torch.zeros_like(counts[..., :1]) + empty.to(counts.dtype)
        self.bias = torch.log(torch.cat([pad, counts[..., 1:]], -1)).clamp(min=_HIDDEN)

    def attend(self, q, k, v):
        """q [B, T, H, P, d_kv]; k, v [V, H, d_kv] -> [B, T, H, P, d_kv]."""
        p = _softmax(torch.einsum("bthpc,vhc->bthpv", q, k), self.bias[:, :, None, None])
        return torch.einsum("bthpv,vhc->bthpc", p, v)


class TokenList:
    """A retrieved set as tokens [B, T, R] with a bias each; padded with token 0, whose bias hides it.

    From `spelled`, this is the reference implementation's form: repeats stay, an empty bucket is uniform over R pads.
    For vocabularies too large for CountTable, `distinct` gives few tokens with log counts.
    """

    def __init__(self, tokens, bias):
        self.tokens, self.bias = tokens, bias

    @classmethod
    def spelled(cls, tokens, dtype):
        return cls(tokens, (tokens == 0).to(dtype) * _HIDDEN)

    @classmethod
    def distinct(cls, tokens, dtype):
        """Sorts each row and counts runs; only the first of a run stays visible."""
        tokens = tokens.sort(-1, descending=True).values
        same = tokens.unsqueeze(-1) == tokens.unsqueeze(-2)
        first = (same.to(torch.int64).cumsum(-1) * same).diagonal(dim1=-2, dim2=-1) == 1
        bias = torch.log(same.sum(-1).to(dtype))
        empty = (tokens == 0).all(-1, keepdim=True)
        return cls(tokens, torch.where(first & ((tokens != 0) | empty), bias, torch.full_like(bias, _HIDDEN)))

    def attend(self, q, k, v):
        p = _softmax(torch.einsum("bthpc,btrhc->bthpr", q, k[self.tokens]), self.bias[:, :, None, None])
        return torch.einsum("bthpr,btrhc->bthpc", p, v[self.tokens])


class Glass(torch.nn.Module):
    """One GLASS model of a models.training.glass.config.Config."""

    def __init__(self, config, seed=0, dropout=0.0, std=0.05):
        super().__init__()
        self.config, self.dropout, self._bucket_tables = config, dropout, {}
        self._tier_scale = None
        self.weights = torch.nn.ParameterDict()
        generator = torch.Generator().manual_seed(seed)
        for name, shape in sorted(glass_config.weight_shapes(config).items()):
            value = _initial(name, shape, generator, std, config.d_kv)
            self.weights[name.replace(".", ":")] = torch.nn.Parameter(value)

    def w(self, name):
        return self.weights[name.replace(".", ":")]

    def named_weights(self):
        return {name.replace(":", "."): value for name, value in self.weights.items()}

    def load_weights(self, tensors):
        """Copies numpy arrays or torch tensors by name; exactly the configuration's tensors, with their shapes."""
        named = self.named_weights()
        if set(named) != set(tensors):
            raise ValueError(f"tensors {sorted(set(named) ^ set(tensors))} are missing or one too many")
        for name, parameter in named.items():
            value = tensors[name]
            value = torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
            if tuple(value.shape) != tuple(parameter.shape):
                raise ValueError(f"tensor {name}: shape {tuple(value.shape)}, expected {tuple(parameter.shape)}")
            with torch.no_grad():
                parameter.copy_(value)

    def standardise_tiers(self, features):
        """For training: the MLP reads tier features as deviations from their mean over `features` [n, codes * bins].

        What most users have in common is most of a raw feature, and an optimiser is slow to find the rest. The scale
        is bounded, so that a bin which hardly anyone fills cannot drown the others. `fold_tiers` ends it.
        """
        some = features[features.sum(1) > 0]
        if len(some) > 1:
            self._tier_scale = (some.mean(0), 1 / (some.std(0) + 0.02))

    def start_additions(self, tiers, gate, size=0.3):
        """For training: start values of the two additions, in place of random ones.

        tiers: the tier token starts as a sum of first-level tokens, each by how far its highest tier is above the mean
        (after `standardise_tiers`), so it says in the words of the window which codes a user prefers; left as it is
        where d < levels[0]. gate: first bias of every gate.
        """
        codes, bins, start = self.config.levels[0], self.config.bins, self.config.offset(0)
        with torch.no_grad():
            if tiers and bins and codes <= self.config.d:
                self.w("tier.w1")[:codes] = 0
                self.w("tier.w1")[torch.arange(codes), torch.arange(codes) * bins + bins - 1] = 1
                self.w("tier.w2")[:, :codes] = self.w("token_embedding")[start:start + codes].t()
                self.w("tier.w2").mul_(size)
            for i in range(self.config.decoder_layers if self.config.retrieved_items else 0):
                self.w(f"dec.{i}.gate.b").fill_(gate)

    def fold_tiers(self):
        """Moves the standardisation into tier.w1 and tier.b1: the same function of raw features, as versions hold it."""
        if self._tier_scale is None:
            return
        mean, scale = (x.to(self.w("tier.w1")) for x in self._tier_scale)
        with torch.no_grad():
            self.w("tier.w1").mul_(scale)
            self.w("tier.b1").sub_(self.w("tier.w1") @ mean)
        self._tier_scale = None

    # ---- pieces ------------------------------------------------------------------------------------------------

    def _drop(self, x):
        return F.dropout(x, self.dropout, self.training) if self.dropout > 0 else x

    def _norm(self, name, x):
        if hasattr(F, "rms_norm"):  # torch 2: one kernel
            return F.rms_norm(x, x.shape[-1:], self.w(name), _EPS)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + _EPS) * self.w(name)

    def _heads(self, name, x, parts):
        """x [..., n, d] through the matrices `name`.q, .k, .v that `parts` names: for each one [..., H, n, d_kv]."""
        matrices = [self.w(f"{name}.{part}") for part in parts]
        y = F.linear(x, torch.cat(matrices) if len(parts) > 1 else matrices[0])
        y = y.reshape(y.shape[:-1] + (len(parts), self.config.heads, self.config.d_kv)).transpose(-2, -4)
        return list(y.unbind(-3))  # [..., H, parts, n, d_kv]

    def _out(self, name, o):
        return F.linear(o.transpose(-2, -3).flatten(-2), self.w(name))

    def _ffn(self, prefix, x):
        z = self._norm(f"{prefix}.ffn.norm", x)
        hidden = self._drop(torch.relu(F.linear(z, self.w(f"{prefix}.ffn.w1"))))
        return x + self._drop(F.linear(hidden, self.w(f"{prefix}.ffn.w2")))

    def _self_bias(self, stack, first, count, keys, device):
        """[H, count, keys] of queries at slots first, first + 1, ... and keys at slots 0, 1, ..."""
        key = (first, count, keys, str(device))
        if key not in self._bucket_tables:
            distance = torch.arange(keys).unsqueeze(0) - torch.arange(first, first + count).unsqueeze(1)
            bucket = relative_bucket(distance, self.config.relative_buckets, self.config.relative_distance_max)
            self._bucket_tables[key] = F.one_hot(bucket, self.config.relative_buckets).to(device)
        table = self.w(f"{stack}.0.self.rel_bias")
        return (self._bucket_tables[key].to(table.dtype) @ table).permute(2, 0, 1)

    def embed(self, tokens):
        """Rows of the token table. In training as a product with one-hot rows: the gradient of an index would add the
        many repeats of a small vocabulary one after the other."""
        table = self.w("token_embedding")
        if self.training and table.is_cuda and self.config.vocabulary <= 4096:
            same = tokens.unsqueeze(-1) == torch.arange(self.config.vocabulary, device=tokens.device)
            return (same.to(torch.bfloat16) @ table).to(table.dtype)
        return table[tokens]

    # ---- encoder -----------------------------------------------------------------------------------------------

    def tier_token(self, features):
        """[B, levels[0] * bins] -> [B, d]."""
        if self._tier_scale is not None:
            features = (features - self._tier_scale[0]) * self._tier_scale[1]
        hidden = torch.relu(F.linear(features, self.w("tier.w1"), self.w("tier.b1")))
        return F.linear(self._drop(hidden), self.w("tier.w2"), self.w("tier.b2"))

    def encode(self, short_tokens, features=None):
        """Memory [B, S, d] and which slots are visible [B, S]. short_tokens int64 [B, 3 * short_items], left-padded."""
        x = self.embed(short_tokens)
        visible = short_tokens != 0
        if self.config.tier_edges:
            token, seen = self.tier_token(features).unsqueeze(1), torch.ones_like(visible[:, :1])
            first = self.config.tier_position == "FIRST"
            x = torch.cat([token, x] if first else [x, token], 1)
            visible = torch.cat([seen, visible] if first else [visible, seen], 1)
        if self.training and x.is_cuda:  # widths that tensor cores can load; the added slots are hidden
            x, visible = F.pad(x, (0, 0, 0, -x.shape[1] % 8)), F.pad(visible, (0, -visible.shape[1] % 8))
        slots = x.shape[1]
        bias = self._self_bias("enc", 0, slots, slots, x.device) + ((~visible).to(x.dtype) * _HIDDEN)[:, None, None]
        x = self._drop(x)
        for i in range(self.config.encoder_layers):
            prefix = f"enc.{i}"
            z = self._norm(f"{prefix}.self.norm", x)
            q, k, v = self._heads(f"{prefix}.self", z, "qkv")
            p = _softmax(q @ k.transpose(-1, -2), bias)
            x = self._ffn(prefix, x + self._drop(self._out(f"{prefix}.self.o", p @ v)))
        return self._drop(self._norm("enc.final_norm", x)), visible

    # ---- decoder -----------------------------------------------------------------------------------------------

    def memory_kv(self, memory):
        """Per decoder layer K and V of the memory, [B, H, S, d_kv]: shared by all beams and steps."""
        return [self._heads(f"dec.{i}.memory", memory, "kv") for i in range(self.config.decoder_layers)]

    def retrieved_tables(self):
        """Per decoder layer K and V of every token, [V, H, d_kv]: constants of the weights, embedding detached."""
        if not self.config.retrieved_items:
            return [None] * self.config.decoder_layers
        rows = F.linear(self.w("token_embedding").detach(), self.w("retrieved.w"), self.w("retrieved.b"))
        return [[x.transpose(0, 1) for x in self._heads(f"dec.{i}.retrieved", rows, "kv")]
                for i in range(self.config.decoder_layers)]

    def decoder(self, tokens, first, kv, visible, tables, retrieved, cache=None, gates=None):
        """States after the final norm of positions first, first + 1, ...; [B, T, P, d].

        tokens int64 [B, T, P]: what stands at these positions. retrieved: CountTable or TokenList of the T targets,
        None at position 0. cache: per layer (k, v) of earlier positions [B, T, H, first, d_kv], replaced in place.
        gates: a list that receives every layer's gate [B, T, P, d].
        """
        x = self._drop(self.embed(tokens))
        count, keys = tokens.shape[-1], first + tokens.shape[-1]
        later = torch.ones(count, keys, device=x.device, dtype=x.dtype).triu(first + 1) * _HIDDEN
        bias = self._self_bias("dec", first, count, keys, x.device) + later
        hidden = ((~visible).to(x.dtype) * _HIDDEN)[:, None, None]
        if not self.config.bins:  # without a tier token a new user has no memory at all: attention to nothing gives zero
            some = visible.any(-1).to(x.dtype)[:, None, None, None]
            kv = [(k, v * some) for k, v in kv]
        for i in range(self.config.decoder_layers):
            prefix = f"dec.{i}"
            z = self._norm(f"{prefix}.self.norm", x)
            q, k, v = self._heads(f"{prefix}.self", z, "qkv")
            if cache is not None:
                if cache[i] is not None:
                    k, v = torch.cat([cache[i][0], k], -2), torch.cat([cache[i][1], v], -2)
                cache[i] = (k, v)
            p = _softmax(q @ k.transpose(-1, -2), bias)
            x = x + self._drop(self._out(f"{prefix}.self.o", p @ v))
            x = x + self._drop(self._cross(prefix, x, first, kv[i], hidden, tables[i], retrieved, gates))
            x = self._ffn(prefix, x)
        return self._drop(self._norm("dec.final_norm", x))

    def _cross(self, prefix, x, first, kv, hidden, table, retrieved, gates):
        """Attention to the memory, blended after position 0 with attention to the retrieved set."""
        z = self._norm(f"{prefix}.cross.norm", x)
        b, t, p, _ = z.shape
        q, = self._heads(f"{prefix}.memory", z.reshape(b, t * p, -1), "q")
        weights = _softmax(q @ kv[0].transpose(-1, -2), hidden)
        near = self._out(f"{prefix}.memory.o", weights @ kv[1]).reshape(b, t, p, -1)
        skip = 1 if first == 0 else 0  # the first position predicts s1 and must not see what s1 retrieves
        if table is None or p == skip:
            return near
        z, rest = z[:, :, skip:], near[:, :, skip:]
        q, = self._heads(f"{prefix}.retrieved", z, "q")
        far = self._out(f"{prefix}.retrieved.o", retrieved.attend(q, *table))
        source = z if self.config.gate_input == "STATE" else rest
        gate = F.linear(torch.cat([source, far.to(source.dtype)], -1), self.w(f"{prefix}.gate.w"),
                        self.w(f"{prefix}.gate.b"))
        gate = torch.sigmoid(gate)
        if gates is not None:
            gates.append(gate)
        mixed = (1 - gate) * rest + gate * far
        return torch.cat([near[:, :, :skip], mixed], 2) if skip else mixed

    def scores(self, states):
        """Logits over the whole vocabulary; the output head is the token embedding."""
        return F.linear(states, self.w("token_embedding"))

    def logits(self, short_tokens, features, targets, retrieved, gates=None):
        """Teacher forcing: logits [B, T, 3, V] of targets int64 [B, T, 3] (tokens)."""
        memory, visible = self.encode(short_tokens, features)
        bos = torch.full_like(targets[..., :1], self.config.bos)
        tokens = torch.cat([bos, targets[..., :2]], -1)
        states = self.decoder(tokens, 0, self.memory_kv(memory), visible, self.retrieved_tables(), retrieved,
                              gates=gates)
        return self.scores(states)


def _initial(name, shape, generator, std, d_kv):
    """Start values: ones for norms, zeros for biases, N(0, std) for embeddings; matrices so that unscaled attention
    starts flat (q at 1 / sqrt(d * d_kv)), the rest at 1 / sqrt(fan in)."""
    if name.endswith("norm"):
        return torch.ones(shape)
    if len(shape) == 1:
        return torch.zeros(shape)
    value = torch.randn(shape, generator=generator)
    if name == "token_embedding" or name.endswith("rel_bias"):
        return value * std
    scale = 1 / math.sqrt(shape[1])
    if name.endswith(".q"):
        scale /= math.sqrt(d_kv)
    return value * scale
