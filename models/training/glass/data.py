"""A data folder on the training device: histories, point-in-time inputs and retrieved sets, all as batched tensor code.

A sample is a moment: one user, everything strictly before it (history), and the items chosen at it (targets). Events of
one moment share a time and never see each other. The long part is the history without its newest `short_items` events.

    log = Log(folder, sid_file, config, device)
    index = log.samples(TRAIN)                     # int64 [n] sample numbers
    batch = log.batch(index[:256], targets=4)      # short tokens, tier features, target tokens, which targets count
    retrieved = log.retrieve(batch.sample, codes)  # twin.CountTable of first-level codes [B, T]
"""
import os

import numpy as np
import torch

from models.training import tensor_file
from models.training.glass import history, prepare, twin

TRAIN, VALIDATION, TEST = prepare.TRAIN, prepare.VALIDATION, prepare.TEST


class Batch:
    """Inputs of B samples; see Log.batch."""

    def __init__(self, **tensors):
        self.__dict__.update(tensors)


class Log:
    """All of a data folder under one configuration and one set of SIDs."""

    def __init__(self, folder, sid, config, device="cpu", items_file="items.safetensors"):
        log, self.about = tensor_file.read_tensors(os.path.join(folder, "log.safetensors"))
        items, _ = tensor_file.read_tensors(os.path.join(folder, items_file))
        self.config, self.device = config, device
        self.catalogue = history.Catalogue(config, sid, items["embedding"])
        self.offsets, self.time_us = log["user.offsets"], log["event.time_us"]
        self.item = log["event.item"].astype(np.int64)
        self.item_id, self.split = log["item.id"], log["event.split"]
        self.unseen_only = self.about.get("unseen_only") == "true"
        self.items = len(self.item_id)
        if len(self.catalogue.sid) != self.items:
            raise ValueError(f"{folder}: {self.items} items, but SIDs of {len(self.catalogue.sid)}")
        self._moments()
        self._to_device()

    def _moments(self):
        """Moments as numpy: user, first event, end event, split; those without any history are dropped."""
        user = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        first = np.flatnonzero(np.r_[True, (user[1:] != user[:-1]) | (self.time_us[1:] != self.time_us[:-1])])
        end = np.r_[first[1:], len(user)]
        keep = first > self.offsets[user[first]]
        self.moment_user, self.moment_first, self.moment_end = user[first][keep], first[keep], end[keep]
        self.moment_split = self.split[self.moment_first]
        self.moment_start = self.offsets[self.moment_user]
        last = np.r_[self.moment_user[1:] != self.moment_user[:-1], True]
        self.moment_is_last = last & (self.moment_split == TEST)
        self.event_user = user

    def samples(self, split):
        """Sample numbers of a split."""
        return np.flatnonzero(self.moment_split == split)

    def history_length(self, sample):
        return self.moment_first[sample] - self.moment_start[sample]

    def train_counts(self):
        """How often each item occurs in the training part: the prior of items that share a SID, and of popularity."""
        return np.bincount(self.item[self.split == TRAIN], minlength=self.items)

    def _to_device(self):
        config, put = self.config, lambda x, t=torch.int64: torch.from_numpy(np.array(x)).to(t).to(self.device)
        self.tokens = put(self.catalogue.tokens)                      # [items, 3]
        self.sid = put(self.catalogue.sid)
        self.d_item = put(self.item)
        self.first, self.end, self.start = put(self.moment_first), put(self.moment_end), put(self.moment_start)
        code = self.catalogue.sid[self.item, 0]
        # Events ordered by (user, code, position): a bucket is a range, and "before position p" a binary search.
        key = (self.event_user * config.levels[0] + code) * len(self.item) + np.arange(len(self.item))
        order = np.argsort(key, kind="stable")
        self.bucket_key, self.bucket_item = put(key[order]), put(self.item[order])
        self.d_user = put(self.moment_user)
        first = np.flatnonzero(np.r_[True, (self.event_user[1:] != self.event_user[:-1]) |
                                     (self.time_us[1:] != self.time_us[:-1])])
        size = np.zeros(len(self.item) + 1, np.int64)
        size[first] = np.diff(np.r_[first, len(self.item)])
        size[:-1][self.split != TRAIN] = 0
        size[self.offsets[:-1]] = 0  # a user's first moment has no history
        train = np.r_[0, np.cumsum(self.split == TRAIN)]
        self.train_end = put(self.offsets[:-1] + train[self.offsets[1:]] - train[self.offsets[:-1]])
        self.train_moment_size = put(size)  # events of the training moment that begins here, 0 elsewhere
        self.neighbours = put(self.catalogue.neighbours)
        self.features = self._features() if config.bins else None
        self.tier_table = None  # of augment.tiers, made when first used

    def _bounds(self, sample):
        """Event range [begin, end) of the long part of each sample."""
        start, end = self.start[sample], self.first[sample] - self.config.short_items
        end = torch.maximum(start, end)
        if self.config.long_items:
            start = torch.maximum(start, end - self.config.long_items)
        return start, end

    def _features(self):
        """Tier features of every sample, float32 [samples, codes * bins]: exact counts by prefix sums, then shares."""
        codes, bins = self.config.levels[0], self.config.bins
        start, end = self._bounds(torch.arange(len(self.first), device=self.device))
        table = torch.from_numpy(self.catalogue.bins).to(self.device)
        out = torch.zeros(len(self.first), codes, bins, device=self.device)
        width = (end - start).clamp(min=1).to(torch.float32)
        for code in range(codes):
            row = table[self.d_item, code].to(torch.int64)
            for b in range(bins):
                sums = torch.nn.functional.pad(torch.cumsum((row == b).to(torch.int32), 0), (1, 0))
                out[:, code, b] = (sums[end] - sums[start]).to(torch.float32) / width
        return out.flatten(1)

    # ---- inputs ------------------------------------------------------------------------------------------------

    def short_tokens(self, sample):
        """int64 [B, 3 * short_items], left-padded with 0."""
        n = self.config.short_items
        position = self.first[sample].unsqueeze(1) + torch.arange(-n, 0, device=self.device)
        inside = position >= self.start[sample].unsqueeze(1)
        rows = self.tokens[self.d_item[position.clamp(min=0)]]
        return (rows * inside.unsqueeze(-1)).flatten(1)

    def targets(self, sample, count, begin, horizon=0):
        """Items [B, count] of the moment, cyclic from `begin` (int64 [B], taken modulo their number), and which count.

        horizon, for training only: a moment with fewer events is joined by those that follow it, up to this many
        events, never beyond the user's training part. The history stays what it was before the moment.
        """
        size = (self.targets_end(sample, horizon) - self.first[sample]).unsqueeze(1)
        j = torch.arange(count, device=self.device)
        position = self.first[sample].unsqueeze(1) + (begin.unsqueeze(1) + j) % size
        return self.d_item[position], j < size

    def targets_end(self, sample, horizon=0):
        """First event after the targets of each sample, int64 [B]."""
        end = self.end[sample]
        if horizon:
            end = torch.maximum(end, torch.minimum(self.first[sample] + horizon, self.train_end[self.d_user[sample]]))
        return end

    def batch(self, sample, targets, begin, horizon=0):
        """Everything that twin.Glass.logits needs of samples int64 [B] on the device; T = targets."""
        items, valid = self.targets(sample, targets, begin, horizon)
        features = self.features[sample] if self.features is not None else None
        return Batch(sample=sample, short=self.short_tokens(sample), features=features, items=items,
                     tokens=self.tokens[items], valid=valid, codes=self.sid[items][..., 0])

    def _range(self, sample, codes, start, end):
        """Rows [low, high) of the bucket table: events of `codes` [B, T] within each sample's long part."""
        base = (self.d_user[sample].unsqueeze(1) * self.config.levels[0] + codes) * len(self.item)
        low = torch.searchsorted(self.bucket_key, (base + start.unsqueeze(1)).contiguous())
        return low, torch.searchsorted(self.bucket_key, (base + end.unsqueeze(1)).contiguous())

    def retrieved_items(self, sample, codes):
        """Items [B, T, retrieved_items], -1 beyond the end: own bucket newest first, then the neighbours' if short."""
        config, limit = self.config, self.config.retrieved_items
        start, end = self._bounds(sample)
        slot = torch.arange(limit, device=self.device)
        low, high = self._range(sample, codes, start, end)
        used = (high - low).clamp(max=limit)
        rows = high.unsqueeze(-1) - 1 - slot
        found = slot < used.unsqueeze(-1)
        short = used < config.neighbour_below
        for k in range(config.neighbours):
            low, high = self._range(sample, self.neighbours[codes, k], start, end)
            more = torch.where(short, torch.minimum(high - low, limit - used), torch.zeros_like(used))
            mine = (slot >= used.unsqueeze(-1)) & (slot < (used + more).unsqueeze(-1))
            rows = torch.where(mine, high.unsqueeze(-1) - 1 - (slot - used.unsqueeze(-1)), rows)
            found, used = found | mine, used + more
        items = self.bucket_item[rows.clamp(min=0, max=len(self.item) - 1)]
        return torch.where(found, items, torch.full_like(items, -1))

    def retrieve(self, sample, codes, dtype=torch.float32):
        """twin.CountTable of the buckets of codes [B, T] as each sample's history had them; None without search."""
        if not self.config.retrieved_items:
            return None
        return self.count_table(self.retrieved_items(sample, codes), dtype)

    def count_table(self, items, dtype=torch.float32):
        """twin.CountTable of retrieved items [B, T, R], -1 for none."""
        tokens = (self.tokens[items.clamp(min=0)] * (items >= 0).unsqueeze(-1)).flatten(-2)
        counts = torch.zeros(items.shape[:2] + (self.config.vocabulary,), dtype=dtype, device=self.device)
        counts.scatter_add_(-1, tokens, torch.ones_like(tokens, dtype=dtype))
        counts[..., 0] = 0
        return twin.CountTable(counts)

    def seen(self, sample):
        """The distinct items of each sample's history, as a list of numpy arrays."""
        return [np.unique(self.item[self.moment_start[s]:self.moment_first[s]]) for s in sample]
