"""Beam search over semantic IDs: three steps, K/V cached; and the naive form that recomputes everything.

Modes: "free" takes any token of the vocabulary (as the reference implementation does), "level" only tokens of the
step's level, "valid" only those that continue the SID of an item (`Trie`). Masks come after the log-softmax over the
whole vocabulary and nothing is renormalised, so that scores of all modes compare.
"""
import math

import torch

from models.training.glass import twin


class Trie:
    """Valid continuations of SID prefixes as sorted keys; works for any codebook size in 8 bytes an item and level."""

    def __init__(self, sid, levels, device="cpu"):
        sid = torch.tensor(sid, dtype=torch.int64, device=device)
        self.levels, self.keys, key = levels, [], torch.zeros_like(sid[:, 0])
        for level, size in enumerate(levels):
            key = key * size + sid[:, level]
            self.keys.append(torch.unique(key))

    def mask(self, level, prefix):
        """bool [.., levels[level]] of int64 [..] prefix keys: the mixed-radix number of the codes, 0 at level 0."""
        wanted = prefix.unsqueeze(-1) * self.levels[level] + torch.arange(self.levels[level], device=prefix.device)
        keys = self.keys[level]
        at = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        return keys[at] == wanted


class Beams:
    """Best first. tokens int64 [B, W, steps], score [B, W] (-inf where fewer than W exist), per step in `steps`."""

    def __init__(self, tokens, score, steps):
        self.tokens, self.score, self.steps = tokens, score, steps

    def codes(self, config):
        """int64 [B, W, 3]; meaningful where every token is of its level (modes "level" and "valid")."""
        offsets = torch.tensor([config.offset(level) for level in range(3)], device=self.tokens.device)
        return self.tokens[..., :3] - offsets


def first_code(config, token):
    """The bucket a beam reads: its own first code; a token outside level 1 is clamped, as in the reference."""
    return (token - config.offset(0)).clamp(0, config.levels[0] - 1)


def _candidates(config, logits, step, mode, trie, prefix):
    """Log-probabilities [B, T, n] of the step's candidates, and the token of column 0."""
    if step == 0 and config.first_step_epsilon > 0:
        scores = torch.log(torch.softmax(logits, -1) + config.first_step_epsilon)
    else:
        scores = torch.log_softmax(logits, -1)
    if mode == "free":
        return scores, 0
    begin = config.offset(step)
    scores = scores[..., begin:begin + config.levels[step]]
    if mode == "valid":
        scores = scores.masked_fill(~trie.mask(step, prefix), -math.inf)
    return scores, begin


def _select(config, scores, begin, beam, tokens, total):
    """The best `beam` continuations of all beams: (tokens [B, W, step + 1], total [B, W], parent [B, W])."""
    joint = scores if total is None else total.unsqueeze(-1) + scores
    b, t, n = joint.shape
    value, index = joint.reshape(b, t * n).topk(min(beam, t * n), dim=-1)
    parent, token = torch.div(index, n, rounding_mode="floor"), index % n + begin
    if tokens is None:
        return token.unsqueeze(-1), value, parent
    kept = torch.gather(tokens, 1, parent.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
    return torch.cat([kept, token.unsqueeze(-1)], -1), value, parent


def search(model, short_tokens, features, retrieve, beam=None, mode="valid", trie=None, encoded=None):
    """Beams of B users with cached K/V. retrieve(s1 int64 [B, W]) -> CountTable or TokenList of those buckets."""
    config = model.config
    beam = beam or config.beam
    memory, visible = encoded or model.encode(short_tokens, features)
    kv, tables = model.memory_kv(memory), model.retrieved_tables()
    cache = [None] * config.decoder_layers
    tokens, total, steps, retrieved = None, None, [], None
    for step in range(3):
        last = torch.full((memory.shape[0], 1, 1), config.bos, device=memory.device) if step == 0 else tokens[..., -1:]
        states = model.decoder(last, step, kv, visible, tables, retrieved, cache)
        prefix = torch.zeros_like(last[..., 0]) if step == 0 else _prefix(config, tokens)
        scores, begin = _candidates(config, model.scores(states[:, :, 0]), step, mode, trie, prefix)
        tokens, total, parent = _select(config, scores, begin, beam, tokens, total)
        steps.append((tokens, total))
        if step < 2:
            rows = parent[:, :, None, None, None]
            cache = [tuple(torch.gather(x, 1, rows.expand(-1, -1, *x.shape[2:])) for x in entry) for entry in cache]
            if config.retrieved_items:
                retrieved = retrieve(first_code(config, tokens[..., 0]))
    return Beams(tokens, total, steps)


def _prefix(config, tokens):
    key = torch.zeros_like(tokens[..., 0])
    for level in range(tokens.shape[-1]):
        key = key * config.levels[level] + (tokens[..., level] - config.offset(level))
    return key


def search_naive(model, short_tokens, features, retrieve, beam=None, mode="valid", trie=None, steps=3):
    """The same without any cache, as a reader would write it first: every step runs whole prefixes.

    steps=4 is the audit mode for numbers published with the reference implementation, whose evaluation decodes a
    fourth, meaningless token and cuts it off; it reorders beams. Mode "free" only.
    """
    config = model.config
    beam = beam or config.beam
    tokens, total, history = None, None, []
    for step in range(steps):
        memory, visible = model.encode(short_tokens, features)
        bos = torch.full((memory.shape[0], 1 if step == 0 else tokens.shape[1], 1), config.bos, device=memory.device)
        prefix = bos if step == 0 else torch.cat([bos, tokens], -1)
        retrieved = retrieve(first_code(config, tokens[..., 0])) if step and config.retrieved_items else None
        states = model.decoder(prefix, 0, model.memory_kv(memory), visible, model.retrieved_tables(), retrieved)
        key = torch.zeros_like(bos[..., 0]) if step == 0 else _prefix(config, tokens[..., :3])
        scores, begin = _candidates(config, model.scores(states[:, :, -1]), step, mode, trie, key)
        tokens, total, _ = _select(config, scores, begin, beam, tokens, total)
        history.append((tokens, total))
    return Beams(tokens[..., :3], total, history)


def retrieve_from(history, dtype=torch.float32, spelled=False):
    """`retrieve` of one user's models.training.glass.history.History."""
    width, device = history.config.vocabulary, "cpu"

    def retrieve(codes):
        tokens = torch.stack([torch.from_numpy(history.retrieved_tokens(int(code))) for code in codes.flatten()])
        tokens = tokens.reshape(codes.shape + tokens.shape[-1:]).to(device)
        if spelled:
            return twin.TokenList.spelled(tokens, dtype)
        counts = torch.zeros(tokens.shape[:-1] + (width,), dtype=dtype)
        counts.scatter_add_(-1, tokens, torch.ones_like(tokens, dtype=dtype))
        counts[..., 0] = 0
        return twin.CountTable(counts)

    return retrieve
