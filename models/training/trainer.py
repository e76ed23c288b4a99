"""The training loop all rankers share: epochs, early stopping on validation, weight average, checkpoints.

A ranker is a torch module with `form` ("packed" or "samples"), for samples `history`, and logits(data, batch).
"""
import os
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

from models.training import metrics, optimizers, shards, sparse_stage

DEFAULTS = {
    "epochs": 40, "patience": 6, "lr": 2e-3, "weight_decay": 0.05, "table_lr": 1e-3, "table_decay": 0.05,
    "average": 0.98, "pairs_max": 4_000_000, "users_max": 24, "samples_max": 1024, "row_dropout": 0.0,
    "target_rows_max": 4096, "context_rows": 0, "select": "auc", "sts_every": 0, "clip": 1.0, "accumulate": 1,
    "seed": 0,
}


def predict(model, data, split, options):
    """(target indices, logits) of every target of a split, as numpy."""
    model.eval()
    indices, logits = [], []
    with torch.no_grad():
        for batch in _batches(model, data, split, options, None):
            z = model.logits(data, batch)
            if model.form == "packed":
                keep = batch.f["valid"]
                indices.append(batch.f["rows"][keep])
                logits.append(z[keep])
            else:
                indices.append(batch.index)
                logits.append(z)
    index = torch.cat(indices).cpu().numpy()
    order = np.argsort(index)
    index, z = index[order], torch.cat(logits).double().cpu().numpy()[order]
    keep = data.split[index] == split
    return index[keep], z[keep]


def _batches(model, data, split, options, rng):
    if model.form == "packed":
        segments = data.segments(split, options["target_rows_max"] if rng is not None else 0,
                                 options["context_rows"] if rng is not None else 0)
        # Scoring keeps no graph, so it can take larger batches; users_max shapes the steps of training only.
        users = options["users_max"] if rng is not None else 256
        for group in shards.plan_batches(segments, options["pairs_max"], users, rng):
            yield shards.Batch(data, group, options["row_dropout"] if rng is not None else 0.0)
        return
    targets = np.flatnonzero(data.split == split)
    if rng is not None:
        rng.shuffle(targets)
    size = options["samples_max"] if rng is not None else 4096
    for start in range(0, len(targets), size):
        index = torch.from_numpy(targets[start:start + size]).to(data.device)
        yield shards.Samples(data, index, model.history)


def _loss(model, data, batch, scale):
    z = model.logits(data, batch)
    if model.form == "packed":
        loss = F.binary_cross_entropy_with_logits(z, batch.label, reduction="none") * batch.f["valid"].to(z.dtype)
        return loss.sum() * scale, int(batch.f["valid"].sum())
    return F.binary_cross_entropy_with_logits(z, batch.label), len(batch.label)


def fit(model, data, options, checkpoint=None, progress=None):
    """Trains until validation stops rising. Returns the best epoch's weights, metrics and the history of all epochs.

    `checkpoint`: a path; written after every epoch, continued from when it exists. options["sts_every"] = n > 0 trains
    by Sequence-Then-Sparse: epochs freeze the tables, and after every n-th the sparse stage updates the tables alone.
    """
    options = {**DEFAULTS, **options}
    torch.manual_seed(options["seed"])
    rng = np.random.default_rng(options["seed"])
    stage = sparse_stage.SparseStage(model, data, options) if options["sts_every"] > 0 else None
    tools = optimizers.build(model, options)
    average = optimizers.Average(model, options["average"])
    state = {"epoch": 0, "history": [], "best": None, "weights": None}
    if checkpoint and os.path.exists(checkpoint):
        state = _resume(checkpoint, model, tools, average, rng, stage)
    targets = int((data.split == shards.TRAIN).sum())
    while state["epoch"] < options["epochs"] and not _stale(state, options["patience"]):
        begin = time.time()
        loss = _epoch(model, data, options, rng, tools, average, targets, state["epoch"], progress, stage)
        average.swap()
        index, z = predict(model, data, shards.VALIDATION, options)
        scores = metrics.evaluate(data.user[index], data.label.cpu().numpy()[index].astype(np.float64), z)
        state["epoch"] += 1
        state["history"].append({"epoch": state["epoch"], "train_loss": loss, **scores,
                                 "seconds": time.time() - begin})
        if state["best"] is None or _value(scores, options) > _value(state["best"], options):
            state["best"] = state["history"][-1]
            state["weights"] = {name: p.detach().cpu().clone() for name, p in model.named_parameters()}
        average.swap()
        if progress:
            progress.epoch(state["history"][-1])
        if checkpoint:
            _save(checkpoint, state, model, tools, average, rng, stage)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(state["weights"][name])
    return state


def _value(scores, options):
    return -scores["log_loss"] if options["select"] == "log_loss" else scores[options["select"]]


def _stale(state, patience):
    return state["best"] is not None and state["epoch"] - state["best"]["epoch"] >= patience


def _epoch(model, data, options, rng, tools, average, targets, epoch, progress, stage):
    model.train()
    frozen = stage is not None
    for name, p in model.named_parameters():
        p.requires_grad_(not (frozen and "table" in name))
    batches = _batches(model, data, shards.TRAIN, options, rng)
    if model.form == "packed":
        batches = list(batches)
        scale = len(batches) / targets / options["accumulate"]
    else:
        scale = 1.0
    total, done = torch.zeros((), device=data.device), 0
    for number, batch in enumerate(batches):
        if number % options["accumulate"] == 0:
            for tool in tools:
                tool.zero_grad(set_to_none=True)
        loss, count = _loss(model, data, batch, scale)
        loss.backward()
        total += loss.detach() * (1.0 / scale if model.form == "packed" else count)
        done += count
        if progress:
            progress.step(epoch, done, targets)
        if (number + 1) % options["accumulate"]:
            continue
        if options["clip"] > 0:
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], options["clip"])
        for tool in tools:
            tool.step()
        average.update()
    if frozen and (epoch + 1) % options["sts_every"] == 0:
        for name, p in model.named_parameters():
            p.requires_grad_("table" in name)
        stage.run(rng, average.update)
    return float(total) / max(1, done)


def _save(path, state, model, tools, average, rng, stage):
    temporary = f"{path}.tmp"
    torch.save({"state": state, "model": model.state_dict(), "tools": [t.state_dict() for t in tools],
                "average": (average.values, average.steps), "torch": torch.get_rng_state(),
                "numpy": rng.bit_generator.state, "stage": stage.state() if stage else None}, temporary)
    os.replace(temporary, path)


def _resume(path, model, tools, average, rng, stage):
    saved = torch.load(path, map_location="cpu") if torch.__version__ < "2" else torch.load(
        path, map_location="cpu", weights_only=False)
    model.load_state_dict(saved["model"])
    for tool, state in zip(tools, saved["tools"]):
        tool.load_state_dict(state)
    for value, held in zip(average.values, saved["average"][0]):
        value.copy_(held)
    average.steps = saved["average"][1]
    torch.set_rng_state(saved["torch"])
    rng.bit_generator.state = saved["numpy"]
    if stage:
        stage.load(saved["stage"])
    return saved["state"]


class Progress:
    """One line per epoch on stderr; a bar within the epoch when stderr is a terminal."""

    def __init__(self, stream=sys.stderr):
        self.stream, self.live = stream, stream.isatty()

    def step(self, epoch, done, total):
        if self.live:
            filled = 30 * done // max(1, total)
            self.stream.write(f"\repoch {epoch + 1} [{'#' * filled}{'.' * (30 - filled)}] {done}/{total}")
            self.stream.flush()

    def epoch(self, row):
        self.stream.write("\r" * self.live + f"epoch {row['epoch']}  train loss {row['train_loss']:.4f}  "
                          f"validation AUC {row['auc']:.4f}  GAUC {row['gauc']:.4f}  log loss {row['log_loss']:.4f}  "
                          f"{row['seconds']:.1f} s\n")
