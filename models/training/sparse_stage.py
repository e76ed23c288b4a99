"""Stage II of Sequence-Then-Sparse training: embedding tables learn from independent samples, all else is frozen.

Stage I (models/training/trainer.py) runs packed user sequences with frozen tables. Here each labelled event is a sample
of its own: the tables' rows of the newest past events, mean-pooled per field, beside those of the candidate, into a
small network that exists for this stage alone. It keeps a user's thousands of events from adding up in one step of the
tables.
"""
import numpy as np
import torch
import torch.nn.functional as F

from models.training import optimizers, shards


class SparseStage:

    def __init__(self, model, data, options, history=50, hidden=64):
        self.model, self.data, self.options, self.history = model, data, options, history
        config = model.config
        torch.manual_seed(options["seed"])
        width = config.width("p") + config.width("f")
        self.top = torch.nn.Sequential(torch.nn.LayerNorm(width), torch.nn.Linear(width, hidden), torch.nn.ReLU(),
                                       torch.nn.Linear(hidden, 1)).to(data.device)
        tables = [p for name, p in model.named_parameters() if "table" in name]
        self.tools = [
            optimizers.RowWiseAdam(tables, lr=options["table_lr"], weight_decay=options["table_decay"]),
            torch.optim.AdamW(self.top.parameters(), lr=options["lr"], weight_decay=options["weight_decay"]),
        ]

    def state(self):
        """What a checkpoint must keep of this stage."""
        return [self.top.state_dict()] + [tool.state_dict() for tool in self.tools]

    def load(self, state):
        self.top.load_state_dict(state[0])
        for tool, saved in zip(self.tools, state[1:]):
            tool.load_state_dict(saved)

    def logits(self, samples):
        """Logit of every sample from pooled tables alone."""
        data, config = self.data, self.model.config
        past = self._pooled("p", {k: v[samples.rows] for k, v in data.ids["p0"].items()})
        seen = samples.valid.unsqueeze(-1).to(past.dtype)
        past = (past * seen).sum(1) / seen.sum(1).clamp(min=1)
        item = self._pooled("f", {k: v[samples.index] for k, v in data.ids["f"].items()})
        assert past.shape[-1] == config.width("p")
        return self.top(torch.cat([past, item, data.dense[samples.index]], -1)).squeeze(-1)

    def _pooled(self, view, ids):
        parts = []
        for field in self.model.config.fields(view):
            index = ids[field.name]
            rows = F.embedding(index.clamp(min=0), self.model.w(f"tok.table.{field.table}"))
            parts.append((rows * (index >= 0).unsqueeze(-1).to(rows.dtype)).sum(-2))
        return torch.cat(parts, -1)

    def run(self, rng, after_step):
        """One pass over the training samples in random order; after_step() follows every update."""
        targets = np.flatnonzero(self.data.split == shards.TRAIN)
        rng.shuffle(targets)
        size = self.options["samples_max"]
        for start in range(0, len(targets), size):
            index = torch.from_numpy(targets[start:start + size]).to(self.data.device)
            samples = shards.Samples(self.data, index, self.history)
            for tool in self.tools:
                tool.zero_grad(set_to_none=True)
            F.binary_cross_entropy_with_logits(self.logits(samples), samples.label).backward()
            for tool in self.tools:
                tool.step()
            after_step()
