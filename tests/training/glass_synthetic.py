"""A small GLASS data folder: users favour two groups of items, events come in moments, some users are nearly empty."""
import contextlib
import io
import os

import numpy as np

from models.training import tensor_file
from models.training.glass import config as glass_config
from models.training.glass import prepare, sid

LEVELS = (6, 8, 8)
SMALL = {"d": 16, "heads": 2, "d_kv": 8, "ffn": 24, "encoder_layers": 2, "decoder_layers": 2, "levels": LEVELS,
         "short_items": 5, "retrieved_items": 6, "embedding_width": 12, "beam": 8}


def config(**fields):
    return glass_config.make(**{**SMALL, "tokens": "DENSE", "vocabulary": 0, "first_step_epsilon": 0.0, **fields})


def catalogue(items=90, seed=0):
    """(embedding [items, 12], sid [items, 3])."""
    r = np.random.default_rng(seed)
    centre = r.normal(size=(9, 12))
    embedding = centre[np.arange(items) % 9] + 0.4 * r.normal(size=(items, 12))
    embedding = (embedding / np.linalg.norm(embedding, axis=1, keepdims=True)).astype(np.float32)
    tensors, _ = sid.train(embedding, levels=LEVELS, kind="RQ_KMEANS", seed=seed)
    return embedding, tensors


def write(folder, users=30, events=40, items=90, seed=0, unseen_only=False):
    """Writes log, items and SIDs; returns the path of the SIDs."""
    r = np.random.default_rng(seed)
    embedding, tensors = catalogue(items, seed)
    user, item, time_us = [], [], []
    for u in range(users):
        n = [1, 2, 7][u] if u < 3 else int(r.integers(events // 2, 2 * events))
        liked = np.flatnonzero(np.isin(np.arange(items) % 9, [u % 9, (u + 1) % 9]))
        user += [f"user-{u:03d}"] * n
        item += list(r.choice(liked, n))
        time_us += list(np.cumsum(np.where(r.random(n) < 0.4, 0, r.integers(1, 50, n))) * 1_000_000)
    user, item, time_us = np.array(user), np.array(item), np.array(time_us)
    names, offsets, order = prepare.in_order(user, time_us, np.arange(len(user)))
    with contextlib.redirect_stdout(io.StringIO()):
        split = prepare.split_log(offsets, time_us[order])
        prepare.write_log(folder, names, offsets, item[order], time_us[order], split, np.arange(items) * 10 + 7,
                          [f"item {i}" for i in range(items)],
                          {"name": "synthetic", "positive": "all", "unseen_only": str(unseen_only).lower()})
    tensor_file.write_tensors(os.path.join(folder, "items.safetensors"), {"embedding": embedding})
    path = os.path.join(folder, "sid.safetensors")
    tensor_file.write_tensors(path, tensors, {"kind": "RQ_KMEANS", "levels": ",".join(map(str, LEVELS))})
    return path
