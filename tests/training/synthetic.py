"""A small data set in the shard format: users like category 1 and one of their own; ties, late labels."""
import os

import numpy as np

from models.training import tensor_file

CONFIG = """
name: "synthetic"
tokenizer {
  partial { name: "item" source: ITEM_ID table: "item" vocab: 41 }
  partial { name: "category" source: ITEM_CATEGORIES table: "category" vocab: 8 }
  partial { name: "class" source: ACTION_CLASS table: "class" vocab: 8 }
  full { name: "item" source: ITEM_ID table: "item" vocab: 41 }
  full { name: "category" source: ITEM_CATEGORIES table: "category" vocab: 8 }
  full_dense { name: "count" source: USER_LOG_COUNT }
  full_dense { name: "noise" source: REQUEST_NUMBER attribute: "noise" }
  actions { action: CLICK action_class: 1 }
  label { action: CLICK }
  channels { name: "all" }
  channels { name: "clicked" action_classes: 1 }
  label_window_us: 60000000
}
d: 16 heads: 2 d_head: 8 layers: 2 ffn: 16 n_pos: 16 n_time: 32 n_act: 4
embedding: 6 gate_mlp_hidden: 16 head_hidden: 16
"""


def tensors(users=24, rows=40, seed=0, first_user=0):
    """Tensors of one shard."""
    r = np.random.default_rng(seed)
    names = [f"user-{first_user + u}" for u in range(users)]
    raw = "".join(names).encode()
    counts = r.integers(0, 2 * rows, users)
    counts[0] = 0  # somebody without events
    counts[1] = 1
    start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    n = int(start[-1])
    user = np.repeat(np.arange(users), counts)
    item = r.integers(1, 41, n)
    category = item % 4 + 1
    like = ((category == user % 4 + 1) | (category == 1)) ^ (r.random(n) < 0.1)
    step = np.where(r.random(n) < 0.25, 0, r.integers(1, 5000, n)) * 1_000_000
    time_us = 1_600_000_000_000_000 + np.cumsum(step)
    tie = time_us.copy()
    closed = time_us + np.where(r.random(n) < 0.2, 60_000_000, 0)
    shard = {
        "users.id": np.frombuffer(raw, np.uint8), "users.id.offsets": np.cumsum([0] + [len(x) for x in names]),
        "f.offsets": start, "f.time_us": time_us, "f.tie": tie, "f.item_id": item, "f.event_id": np.arange(n),
        "f.label": like.astype(np.float32),
        "f.dense": np.stack([np.log1p(np.arange(n) - start[user]), r.normal(size=n)], 1).astype(np.float32),
        "f.item.offsets": np.arange(n + 1, dtype=np.int32), "f.item.ids": item.astype(np.int32),
    }
    # Items of an odd number have a second category: rows with different numbers of ids.
    lists = [[c, 5] if i % 2 else [c] for c, i in zip(category, item)]
    offsets = np.cumsum([0] + [len(x) for x in lists]).astype(np.int32)
    shard["f.category.offsets"], shard["f.category.ids"] = offsets, np.concatenate(lists or [[]]).astype(np.int32)
    for c, chosen in enumerate((np.arange(n), np.flatnonzero(like))):
        shard[f"p{c}.offsets"] = np.searchsorted(chosen, start).astype(np.int64)
        for name, column in (("time_us", time_us), ("tie", tie), ("closed_us", closed), ("event_id", np.arange(n))):
            shard[f"p{c}.{name}"] = column[chosen].astype(np.int64)
        shard[f"p{c}.action"] = like[chosen].astype(np.int32)
        some = [lists[i] for i in chosen]
        shard[f"p{c}.category.offsets"] = np.cumsum([0] + [len(x) for x in some]).astype(np.int32)
        shard[f"p{c}.category.ids"] = np.concatenate(some or [[]]).astype(np.int32)
        for name, column in (("item", item), ("class", like + 1)):
            shard[f"p{c}.{name}.offsets"] = np.arange(len(chosen) + 1, dtype=np.int32)
            shard[f"p{c}.{name}.ids"] = column[chosen].astype(np.int32)
    return shard


def write(folder, config=CONFIG, **options):
    """Two shards with these options; returns their tensors."""
    written = []
    for i in range(2):
        shard = tensors(seed=options.get("seed", 0) + i, first_user=1000 * i,
                        **{k: v for k, v in options.items() if k != "seed"})
        tensor_file.write_tensors(os.path.join(folder, f"tokens-{i}.safetensors"), shard,
                                  {"config": config, "feature_version": "1"})
        written.append(shard)
    return written
