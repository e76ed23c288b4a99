"""What GLASS keeps per user: a short window, integer tier counts and buckets of the long part, updated event by event.

`History` is the incremental form with O(levels[0]) work per event; `recount` computes the same from the whole list and
is what tests compare it with. Both yield the tensors that the network reads (numpy). The catalogue side, constants of a
model version, is `Catalogue`: SIDs, prototypes, and the tier bin of every (item, first-level code).
"""
import collections

import numpy as np

NO_BIN = 255  # a similarity outside the edges: in no bin, but counted in the divisor


def prototypes(embedding, first_code, codes):
    """Mean embedding of the items of each first-level code [codes, width]; the mean of all for a code without items."""
    sums = np.zeros((codes, embedding.shape[1]), np.float64)
    np.add.at(sums, first_code, embedding.astype(np.float64))
    counts = np.bincount(first_code, minlength=codes)[:, None]
    mean = embedding.astype(np.float64).mean(0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), mean).astype(np.float32)


def tier_bins(embedding, prototype, config):
    """uint8 [items, codes]: bin of each similarity, half-open with the last one closed, or NO_BIN."""
    if config.tier_similarity == "COSINE":
        embedding = embedding / np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), 1e-12)
        prototype = prototype / np.maximum(np.linalg.norm(prototype, axis=1, keepdims=True), 1e-12)
    similarity = embedding.astype(np.float32) @ prototype.astype(np.float32).T
    if config.tier_similarity == "COSINE":
        similarity = similarity.clip(-1, 1)  # rounding only
    edges = np.asarray(config.tier_edges, np.float32)
    bins = np.searchsorted(edges, similarity, side="right") - 1
    bins = np.where(similarity == edges[-1], config.bins - 1, bins)
    return np.where((bins < 0) | (bins >= config.bins), NO_BIN, bins).astype(np.uint8)


def nearest_codes(prototype, k):
    """int64 [codes, k]: the other first-level codes by falling cosine of the prototypes."""
    rows = prototype / np.maximum(np.linalg.norm(prototype, axis=1, keepdims=True), 1e-12)
    cosine = rows @ rows.T
    np.fill_diagonal(cosine, -np.inf)
    return np.argsort(-cosine, axis=1, kind="stable")[:, :k].astype(np.int64)


class Catalogue:
    """Constants of one model version over its items. sid int [items, 3], embedding F32 [items, width].

    prototype: as stored in the version; computed from these items if None. An item row is what histories hold.
    """

    def __init__(self, config, sid, embedding, prototype=None):
        self.config, self.sid = config, np.asarray(sid, np.int64)
        if self.sid.shape[1:] != (3,) or (self.sid < 0).any() or (self.sid >= np.array(config.levels)).any():
            raise ValueError(f"sid: expected [items, 3] codes below levels {config.levels}")
        self.prototype = prototypes(embedding, self.sid[:, 0], config.levels[0]) if prototype is None else prototype
        self.bins = tier_bins(embedding, self.prototype, config) if config.bins else None
        self.neighbours = nearest_codes(self.prototype, config.neighbours)
        offsets = np.array([config.offset(level) for level in range(3)])
        self.tokens = self.sid + offsets
        if config.tokens == "STRIDED":  # the reference implementation takes SID (0, 0, 0) for padding
            self.tokens[(self.sid == 0).all(1)] = 0


class History:
    """One user. `append` events oldest first; items are catalogue rows."""

    def __init__(self, catalogue):
        config = catalogue.config
        self.catalogue, self.config = catalogue, config
        self.ring = collections.deque()
        self.counts = np.zeros((config.levels[0], config.bins), np.int64)
        self.long_count = 0
        # Capped where nothing can leave at the far end; a capped long part must be able to give items back.
        cap = None if config.long_items else max(1, config.retrieved_items)
        self.buckets = [collections.deque(maxlen=cap) for _ in range(config.levels[0])]
        self.long = collections.deque() if config.long_items else None

    def append(self, item):
        self.ring.append(item)
        if len(self.ring) > self.config.short_items:
            self._enter_long(self.ring.popleft())

    def _enter_long(self, item):
        self._count(item, 1)
        self.buckets[self.catalogue.sid[item, 0]].append(item)
        if self.long is None:
            return
        self.long.append(item)
        if len(self.long) > self.config.long_items:
            gone = self.long.popleft()
            self._count(gone, -1)
            self.buckets[self.catalogue.sid[gone, 0]].popleft()  # a bucket is in time order, so it is its oldest

    def _count(self, item, change):
        self.long_count += change
        if self.config.bins:
            bins = self.catalogue.bins[item]
            codes = np.flatnonzero(bins != NO_BIN)
            self.counts[codes, bins[codes]] += change

    # ---- what the network reads --------------------------------------------------------------------------------

    def short_tokens(self):
        """int64 [3 * short_items], left-padded with 0."""
        tokens = self.catalogue.tokens[list(self.ring)].reshape(-1) if self.ring else np.zeros(0, np.int64)
        return np.concatenate([np.zeros(3 * self.config.short_items - len(tokens), np.int64), tokens])

    def tier_features(self):
        """float32 [levels[0] * bins]: share of the long part in each bin of each code; zeros without a long part."""
        return (self.counts.reshape(-1) / max(1, self.long_count)).astype(np.float32)

    def bucket(self, code):
        """Catalogue rows retrieved for a first-level code, oldest first, at most retrieved_items.

        Where the code's own bucket has fewer than neighbour_below items, its neighbours fill up what is left, nearest
        code first and newest item first; they come before the own items.
        """
        limit = self.config.retrieved_items
        own = list(self.buckets[code])[-limit:] if limit else []
        if limit and len(own) < self.config.neighbour_below:
            for other in self.catalogue.neighbours[code]:
                room = limit - len(own)
                own = (list(self.buckets[other])[-room:] if room else []) + own
        return own

    def retrieved_tokens(self, code):
        """int64 [3 * retrieved_items], left-padded with 0."""
        items = self.bucket(code)
        tokens = self.catalogue.tokens[items].reshape(-1) if items else np.zeros(0, np.int64)
        return np.concatenate([np.zeros(3 * self.config.retrieved_items - len(tokens), np.int64), tokens])


def recount(catalogue, items):
    """History of a whole list, counted anew: the slow twin of History.append."""
    config = catalogue.config
    history = History(catalogue)
    cut = max(0, len(items) - config.short_items)
    long = list(items[:cut])[-config.long_items:] if config.long_items else list(items[:cut])
    history.ring.extend(items[cut:])
    history.long_count = len(long)
    for item in long:
        for code in range(config.levels[0] if config.bins else 0):
            if catalogue.bins[item, code] != NO_BIN:
                history.counts[code, catalogue.bins[item, code]] += 1
        history.buckets[catalogue.sid[item, 0]].append(item)
    if history.long is not None:
        history.long.extend(long)
    return history


def token_counts(tokens, vocabulary):
    """float [.., vocabulary]: how often each token other than the pad occurs in int [.., R]; for twin.CountTable."""
    tokens = np.asarray(tokens)
    counts = np.zeros(tokens.shape[:-1] + (vocabulary,))
    flat, rows = counts.reshape(-1, vocabulary), tokens.reshape(-1, tokens.shape[-1])
    np.add.at(flat, (np.arange(len(rows))[:, None], rows), 1.0)
    counts[..., 0] = 0
    return counts
