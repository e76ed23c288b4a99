"""Token shards of `backstory tokenize`: reading, splitting by time, packing users into batches.

All tensors of a data set are flat and stay on one device; a batch is a few index tensors into them.
"""
import glob
import os

import numpy as np
import torch

from models.training import config as grab_config
from models.training import tensor_file

TRAIN, VALIDATION, TEST = 0, 1, 2


def split_by_time(offsets, tie, fractions=(0.7, 0.1)):
    """Split id of every target: per user the first 70 % train, the next 10 % validation, the rest test.

    `offsets` [U + 1] over targets in canonical order. A tie group never straddles a cut: the cut moves earlier.
    """
    split = np.full(offsets[-1], TEST, dtype=np.int8)
    for begin, end in zip(offsets[:-1], offsets[1:]):
        n, cuts = int(end - begin), []
        for fraction in np.cumsum(fractions):
            # Rounded to 1e-9 first, so that 0.7 + 0.1 cuts like 0.8.
            cut = int(begin + int(np.floor(round(float(fraction) * n, 9))))
            while begin < cut < end and tie[cut] == tie[cut - 1]:
                cut -= 1
            cuts.append(cut)
        split[begin:cuts[0]] = TRAIN
        split[cuts[0]:cuts[1]] = VALIDATION
    return split


class Dataset:
    """The shards of one folder as flat tensors on `device`.

    users: ids; targets[name] and rows[c][name]: per-target and per-row columns; ids[view][field] int64 [n, slots] with
    -1 where a row has fewer ids; dense [targets, width]; offsets as numpy (they drive the packing).
    """

    def __init__(self, folder, config, device="cpu", dtype=torch.float32):
        paths = sorted(glob.glob(os.path.join(folder, "*.safetensors")))
        if not paths:
            raise ValueError(f"{folder}: no *.safetensors shard; write them with `backstory tokenize --out {folder}`")
        loaded = [tensor_file.read_tensors(path) for path in paths]
        shards = [tensors for tensors, _ in loaded]
        self.metadata = loaded[0][1]
        self.device = device
        for path, (_, metadata) in zip(paths, loaded):
            if metadata.get("config") != self.metadata.get("config"):
                raise ValueError(f"{path}: tokenized with another configuration than {paths[0]}")
        self.users = []
        for tensors in shards:
            raw, offsets = tensors["users.id"].tobytes(), tensors["users.id.offsets"]
            self.users += [raw[a:b].decode("utf-8", "replace") for a, b in zip(offsets[:-1], offsets[1:])]

        def column(name, as_type):
            return torch.from_numpy(np.concatenate([s[name] for s in shards]).astype(as_type)).to(device)

        self.target_offsets = _join_offsets(shards, "f.offsets")
        self.targets = {name: column(f"f.{name}", np.int64) for name in ("time_us", "tie", "item_id", "event_id")}
        self.label = column("f.label", np.float32).to(dtype)
        self.dense = column("f.dense", np.float32).to(dtype)
        if self.dense.dim() != 2:
            self.dense = self.dense.reshape(len(self.label), -1)
        self.ids = {"f": {f.name: _id_matrix(shards, f"f.{f.name}", f.vocab).to(device) for f in config.full}}
        self.row_offsets, self.rows = [], []
        for c in range(config.channels):
            self.row_offsets.append(_join_offsets(shards, f"p{c}.offsets"))
            self.rows.append({name: column(f"p{c}.{name}", np.int64) for name in
                              ("time_us", "action", "tie", "closed_us")})
            self.ids[f"p{c}"] = {f.name: _id_matrix(shards, f"p{c}.{f.name}", f.vocab).to(device)
                                 for f in config.partial}
            if len(self.rows[c]["action"]) and int(self.rows[c]["action"].max()) >= config.n_act - 1:
                raise ValueError(f"{folder}: an action class reaches n_act - 1 = {config.n_act - 1}")
            self._close_in_order(c)
        self.select_dense(config)
        self._time = self.targets["time_us"].cpu().numpy()
        self._row_time = [rows["time_us"].cpu().numpy() for rows in self.rows]
        self._count_rows()
        self.split = split_by_time(self.target_offsets, self.targets["tie"].cpu().numpy())

    def _close_in_order(self, c):
        """A row is final once it and every earlier row of the user are: closed_us becomes the running maximum."""
        closed = self.rows[c]["closed_us"].cpu().numpy().copy()
        for begin, end in zip(self.row_offsets[c][:-1], self.row_offsets[c][1:]):
            np.maximum.accumulate(closed[begin:end], out=closed[begin:end])
        self.rows[c]["closed_us"] = torch.from_numpy(closed).to(self.device)

    def select_dense(self, config):
        """Keeps the dense columns that `config` names; the shards may have been written with more.

        Which ones they have says the model.textproto in their metadata.
        """
        written = grab_config.from_text(self.metadata["config"]).dense
        missing = [name for name in config.dense if name not in written]
        if missing:
            raise ValueError(f"the shards have no dense field {missing[0]}")
        self.dense = self.dense[:, [written.index(name) for name in config.dense]]

    def _count_rows(self):
        """Per target: the user, the user's first row in channel 0, and the end of those strictly before the target."""
        sizes = np.diff(self.target_offsets)
        self.user = np.repeat(np.arange(len(sizes)), sizes)
        first, before = np.zeros(len(self.user), np.int64), np.zeros(len(self.user), np.int64)
        for user, (begin, end) in enumerate(zip(self.target_offsets[:-1], self.target_offsets[1:])):
            a, b = self.row_offsets[0][user:user + 2]
            first[begin:end] = a
            before[begin:end] = a + np.searchsorted(self._row_time[0][a:b], self._time[begin:end], "left")
        self.user_first_row = torch.from_numpy(first).to(self.device)
        self.rows_before = torch.from_numpy(before).to(self.device)

    def segments(self, split, target_rows_max=0, context_rows=0):
        """Packed segments of one split: (user, first target, end target, [(first row, end row) per channel]).

        With target_rows_max > 0 a long user is cut backwards from the newest target (inverse sliding window) into
        segments of that many targets, each with the context_rows rows before its first target in every channel.
        """
        result = []
        for user, (begin, end) in enumerate(zip(self.target_offsets[:-1], self.target_offsets[1:])):
            chosen = np.flatnonzero(self.split[begin:end] == split)
            if not len(chosen):
                continue
            first, stop = int(begin + chosen[0]), int(begin + chosen[-1] + 1)
            while stop > first:
                start = max(first, stop - target_rows_max) if target_rows_max else first
                result.append((user, start, stop, self._row_ranges(user, start, stop, context_rows)))
                stop = start
        return result

    def _row_ranges(self, user, start, stop, context_rows):
        ranges = []
        for c, offsets in enumerate(self.row_offsets):
            a, b = int(offsets[user]), int(offsets[user + 1])
            times = self._row_time[c][a:b]
            end = a + int(np.searchsorted(times, self._time[start:stop].max(), "left"))
            if context_rows:
                a = max(a, a + int(np.searchsorted(times, self._time[start:stop].min(), "left")) - context_rows)
            ranges.append((a, end))
        return ranges


def _join_offsets(shards, name):
    joined, base = [np.zeros(1, np.int64)], 0
    for tensors in shards:
        joined.append(tensors[name][1:].astype(np.int64) + base)
        base = int(joined[-1][-1]) if len(joined[-1]) else base
    return np.concatenate(joined)


def _id_matrix(shards, name, vocab):
    """CSR columns of all shards as one [n, slots] matrix, -1 where there is no id."""
    lengths = np.concatenate([np.diff(tensors[f"{name}.offsets"]) for tensors in shards])
    ids = np.concatenate([tensors[f"{name}.ids"] for tensors in shards]).astype(np.int64)
    if len(ids) and (ids.min() < 0 or ids.max() >= vocab):
        raise ValueError(f"{name}: id {ids.max()} outside the table of {vocab} rows")
    slots = int(lengths.max()) if len(lengths) else 0
    matrix = np.full((len(lengths), max(1, slots)), -1, np.int64)
    row = np.repeat(np.arange(len(lengths)), lengths)
    start = np.cumsum(lengths) - lengths
    matrix[row, np.arange(len(ids)) - start[row]] = ids
    return torch.from_numpy(matrix)


class Batch:
    """Some segments, padded: f and p[c] hold valid, rows (indices into the data set), time_us, tie, ...; [B, T | N]."""

    def __init__(self, data, segments, row_dropout=0.0):
        device = data.device
        self.segments = segments
        self.f = _padded([(s[1], s[2]) for s in segments], device)
        for name in ("time_us", "tie"):
            self.f[name] = data.targets[name][self.f["rows"]]
        self.label = data.label[self.f["rows"]]
        self.p = []
        for c, columns in enumerate(data.rows):
            p = _padded([s[3][c] for s in segments], device)
            empty = len(columns["tie"]) == 0
            for name in ("time_us", "tie", "closed_us", "action"):
                p[name] = torch.zeros_like(p["rows"]) if empty else columns[name][p["rows"]]
            if row_dropout > 0:
                p["valid"] = p["valid"] & (torch.rand(p["rows"].shape, device=device) >= row_dropout)
            self.p.append(p)

    @property
    def pairs(self):
        return self.f["rows"].numel() * max(p["rows"].shape[1] for p in self.p)


def _padded(ranges, device):
    begin = np.array([a for a, _ in ranges], np.int64)
    length = np.array([b - a for a, b in ranges], np.int64)
    at = np.arange(max(1, int(length.max())), dtype=np.int64)
    valid = at[None, :] < length[:, None]
    last = np.where(length > 0, begin + length - 1, 0)  # padding repeats the last row
    rows = np.minimum(begin[:, None] + at[None, :], last[:, None])
    return {"rows": torch.from_numpy(rows).to(device), "valid": torch.from_numpy(valid).to(device)}


class Samples:
    """Independent samples: targets [S] and the newest `history` rows of channel 0 before each, [S, history]."""

    def __init__(self, data, targets, history):
        device = data.device
        self.index = targets
        self.label = data.label[targets]
        end = data.rows_before[targets].unsqueeze(1)
        begin = data.user_first_row[targets].unsqueeze(1)
        rows = end - history + torch.arange(history, device=device)
        columns = data.rows[0]
        self.rows = rows.clamp(min=0)
        self.valid = rows >= begin
        if history and len(columns["tie"]):
            self.rows = self.rows.clamp(max=len(columns["tie"]) - 1)
            self.valid = (self.valid & (columns["tie"][self.rows] != data.targets["tie"][targets].unsqueeze(1)) &
                          (columns["closed_us"][self.rows] <= data.targets["time_us"][targets].unsqueeze(1)))


def plan_batches(segments, pairs_max, users_max, rng=None):
    """Groups segments of similar length so that padding stays small; shuffles them if rng is given."""
    size = np.array([max(s[2] - s[1], max(b - a for a, b in s[3])) for s in segments], np.float64)
    if rng is not None:
        size *= rng.uniform(0.7, 1.3, len(size))
    groups, group, widest = [], [], (1, 1)
    for i in np.argsort(size, kind="stable"):
        s = segments[i]
        targets, rows = s[2] - s[1], max(b - a for a, b in s[3])
        wide = (max(widest[0], targets), max(widest[1], rows))
        if group and (len(group) >= users_max or (len(group) + 1) * wide[0] * wide[1] > pairs_max):
            groups.append(group)
            group, wide = [], (targets, max(1, rows))
        group.append(s)
        widest = wide
    if group:
        groups.append(group)
    if rng is not None:
        rng.shuffle(groups)
    return groups
