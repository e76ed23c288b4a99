"""The training loop: shuffled moments, early stopping on validation NDCG@20, weight average, checkpoints, CUDA graphs.

Works for any module with loss(log, sample, begin, options) and rank(log, sample, options): twin models through
`GlassTask`, and the neural baselines of baselines.py. On a GPU one whole step (batch, forward, backward, update) is a
captured graph, replayed with new sample numbers: the models are so small that launching kernels one by one would cost
more than running them.
"""
import os
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

from models.training.glass import augment, data, evaluate

DEFAULTS = {"epochs": 40, "patience": 5, "lr": 1e-3, "weight_decay": 0.05, "batch": 256, "targets": 4, "horizon": 0,
            "clip": 1.0, "average": 0.98, "item_dropout": 0.0, "warmup": 100, "decay": True, "seed": 0, "beam": 20,
            "validation_max": 2048, "bf16": True, "evaluate_every": 1, "seconds_max": 0.0, "epoch_share": 1.0,
            "keep_min": 1.0, "two_sided": 0.0, "long_dropout": 0.0, "label_smoothing": 0.0}


class GlassTask(torch.nn.Module):
    """Training loss and ranking of a twin.Glass on a data.Log."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def loss(self, log, sample, begin, options):
        """Mean cross-entropy of three tokens over the targets that count."""
        if augment.wanted(options):
            batch, retrieved = augment.batch(log, sample, begin, options)
        else:
            batch = log.batch(sample, options["targets"], begin, options["horizon"])
            retrieved = log.retrieve(sample, batch.codes)
        short = batch.short
        if options["item_dropout"] > 0:
            keep = torch.rand(short.shape[0], short.shape[1] // 3, device=short.device) >= options["item_dropout"]
            short = short * keep.repeat_interleave(3, 1)
        logits = self.model.logits(short, batch.features, batch.tokens, retrieved)
        loss = F.cross_entropy(logits.flatten(0, 2).float(), batch.tokens.flatten(), reduction="none",
                               label_smoothing=options["label_smoothing"])
        loss = loss.reshape(batch.tokens.shape).mean(-1)
        return (loss * batch.valid).sum() / batch.valid.sum()

    def rank(self, log, sample, options):
        return evaluate.evaluate(self.model, log, sample, options["beam"])


def steps_per_epoch(samples, options):
    """An epoch may be a share of the moments, so that large logs are validated more often."""
    return max(1, int(samples * options["epoch_share"]) // options["batch"])


class Stepper:
    """One optimiser step on `batch` samples; on CUDA a replayed graph."""

    def __init__(self, task, log, options):
        self.task, self.log, self.options = task, log, options
        self.parameters = [p for p in task.parameters() if p.requires_grad]
        self.cuda = log.device != "cpu"
        self.lr = torch.tensor(0.0, device=log.device) if self.cuda else 0.0
        decay = [p for p in self.parameters if p.dim() > 1]
        plain = [p for p in self.parameters if p.dim() <= 1]
        settings = {"capturable": True, "fused": True} if self.cuda else {}
        self.tool = torch.optim.AdamW([{"params": decay, "weight_decay": options["weight_decay"]},
                                       {"params": plain, "weight_decay": 0.0}], lr=self.lr, betas=(0.9, 0.99),
                                      **settings)
        self.average = [p.detach().clone() for p in self.parameters]
        self.sample = torch.zeros(options["batch"], dtype=torch.int64, device=log.device)
        self.begin = torch.zeros_like(self.sample)
        self.total = torch.zeros((), device=log.device)
        self.graph, self.steps, self.started = None, 0, time.time()
        self.planned = options["epochs"] * steps_per_epoch(len(log.samples(data.TRAIN)), options)

    def _step(self):
        self.tool.zero_grad(set_to_none=False)
        with torch.autocast("cuda" if self.cuda else "cpu", torch.bfloat16, enabled=self.cuda and self.options["bf16"],
                            cache_enabled=False):
            loss = self.task.loss(self.log, self.sample, self.begin, self.options)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.options["clip"])
        self.tool.step()
        with torch.no_grad():
            torch._foreach_mul_(self.average, self.options["average"])
            torch._foreach_add_(self.average, [p.detach() for p in self.parameters], alpha=1 - self.options["average"])
        self.total += loss.detach()

    def _capture(self):
        """Warm-up on a side stream, as graphs require; all of it is undone, so that capturing trains nothing."""
        kept = [p.detach().clone() for p in self.parameters]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._step()
        with torch.no_grad():
            for p, value, average in zip(self.parameters, kept, self.average):
                p.copy_(value), average.copy_(value)
            for state in self.tool.state.values():
                for value in state.values():
                    value.zero_()
        self.total.zero_()

    def _progress(self):
        """How much of the training is done; short of time, the rate falls with the time instead of the steps."""
        by_time = (time.time() - self.started) / self.options["seconds_max"] if self.options["seconds_max"] else 0.0
        return max(self.steps / self.planned, by_time)

    def run(self, sample, begin):
        left = max(0.02, 1 - self._progress()) if self.options["decay"] else 1.0
        rate = self.options["lr"] * min(left, (self.steps + 1) / max(1, self.options["warmup"]))
        if self.cuda:
            self.lr.fill_(rate)
            if self.graph is None:
                self.sample.copy_(sample), self.begin.copy_(begin)
                self._capture()
        else:
            for group in self.tool.param_groups:
                group["lr"] = rate
        self.sample.copy_(sample), self.begin.copy_(begin)
        self.graph.replay() if self.graph else self._step()
        self.steps += 1
        if self.steps == 50:  # an average that remembers the first random weights would need long to forget them
            with torch.no_grad():
                for average, p in zip(self.average, self.parameters):
                    average.copy_(p)

    def swap(self):
        """Exchanges weights and their average."""
        with torch.no_grad():
            for p, average in zip(self.parameters, self.average):
                held = p.detach().clone()
                p.copy_(average), average.copy_(held)

    def state(self):
        return {"parameters": [p.detach().cpu() for p in self.parameters], "average": [a.cpu() for a in self.average],
                "tool": self.tool.state_dict()["state"], "steps": self.steps}

    def load(self, state):
        if self.cuda and self.graph is None:
            self._capture()  # creates the optimiser state whose tensors the graph will use
        with torch.no_grad():
            for name, mine in (("parameters", self.parameters), ("average", self.average)):
                for p, value in zip(mine, state[name]):
                    p.copy_(value)
        if self.cuda:
            held = self.tool.state_dict()["state"]
            for key, entry in state["tool"].items():
                for name, value in entry.items():
                    held[key][name].copy_(value)
        else:
            whole = self.tool.state_dict()
            whole["state"] = state["tool"]
            self.tool.load_state_dict(whole)
        self.steps = state["steps"]


def validation_samples(log, limit):
    """A fixed subset of the validation moments, spread over all users."""
    sample = log.samples(data.VALIDATION)
    if len(sample) > limit:
        sample = np.sort(np.random.default_rng(0).permutation(sample)[:limit])
    return sample


def fit(task, log, options, checkpoint=None, progress=None):
    """Trains until validation NDCG@20 stops rising; leaves the best weights in `task`, returns the state of the run.

    `checkpoint`: a path, written after every epoch and continued from when it exists.
    """
    options = {**DEFAULTS, **options}
    torch.manual_seed(options["seed"])
    rng = np.random.default_rng(options["seed"])
    train, check = log.samples(data.TRAIN), validation_samples(log, options["validation_max"])
    options["batch"] = min(options["batch"], len(train))
    stepper = Stepper(task, log, options)
    state = {"epoch": 0, "history": [], "best": None, "weights": None}
    if checkpoint and os.path.exists(checkpoint):
        state = _resume(checkpoint, stepper, rng)
    while state["epoch"] < options["epochs"] and not _stale(state, options["patience"]):
        begin = time.time()
        loss = _epoch(task, log, train, options, stepper, rng, state["epoch"], progress)
        state["epoch"] += 1
        row = {"epoch": state["epoch"], "train_loss": loss, "steps": stepper.steps,
               "train_seconds": time.time() - begin}
        late = options["seconds_max"] and time.time() - stepper.started > options["seconds_max"]
        if late or state["epoch"] % options["evaluate_every"] == 0:
            stepper.swap()
            row.update(evaluate.metrics(task.rank(log, check, options)["item"]))
            if state["best"] is None or row["ndcg@20"] > state["best"]["ndcg@20"]:
                state["best"] = row
                state["weights"] = {name: p.detach().cpu().clone() for name, p in task.named_parameters()}
            stepper.swap()
        row["seconds"] = time.time() - begin
        state["history"].append(row)
        if progress:
            progress.epoch(row)
        if checkpoint:
            _save(checkpoint, state, stepper, rng)
        if late:
            state["out_of_time"] = True
            break
    with torch.no_grad():
        for name, p in task.named_parameters():
            p.copy_(state["weights"][name])
    return state


def _stale(state, patience):
    return state["best"] is not None and state["epoch"] - state["best"]["epoch"] >= patience


def _epoch(task, log, train, options, stepper, rng, epoch, progress):
    task.train()
    order = rng.permutation(train)
    begin = rng.integers(0, 1 << 30, len(order))
    steps = steps_per_epoch(len(order), options)
    order, begin = (torch.from_numpy(x).to(log.device) for x in (order, begin))
    stepper.total.zero_()
    for i in range(steps):
        part = slice(i * options["batch"], (i + 1) * options["batch"])
        stepper.run(order[part], begin[part])
        if progress:
            progress.step(epoch, i + 1, steps)
    return float(stepper.total) / steps


def _save(path, state, stepper, rng):
    torch.save({"state": state, "stepper": stepper.state(), "torch": torch.get_rng_state(),
                "numpy": rng.bit_generator.state}, f"{path}.tmp")
    os.replace(f"{path}.tmp", path)


def _resume(path, stepper, rng):
    new = {} if torch.__version__ < "2" else {"weights_only": False}
    saved = torch.load(path, map_location="cpu", **new)
    stepper.load(saved["stepper"])
    torch.set_rng_state(saved["torch"])
    rng.bit_generator.state = saved["numpy"]
    return saved["state"]


class Progress:
    """One line per epoch on stderr; a bar within the epoch when stderr is a terminal."""

    def __init__(self, stream=sys.stderr, name=""):
        self.stream, self.live, self.name = stream, stream.isatty(), name

    def step(self, epoch, done, total):
        if self.live and (done % 10 == 0 or done == total):
            filled = 30 * done // max(1, total)
            self.stream.write(f"\repoch {epoch + 1} [{'#' * filled}{'.' * (30 - filled)}] {done}/{total}")
            self.stream.flush()

    def epoch(self, row):
        found = f"  validation hit@10 {row['hit@10']:.4f}  ndcg@20 {row['ndcg@20']:.4f}" if "hit@10" in row else ""
        self.stream.write("\r" * self.live + f"{self.name} epoch {row['epoch']}  train loss {row['train_loss']:.4f}"
                          f"{found}  {row['train_seconds']:.1f} + {row['seconds'] - row['train_seconds']:.1f} s\n")
        self.stream.flush()
