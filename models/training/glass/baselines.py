"""What GLASS is compared with: popularity, the user's own counts, item-kNN, SASRec.

TIGER is GLASS without both additions (train.py --without).

Every baseline sees what GLASS sees: the history strictly before the moment, and item statistics of the training part
alone. Each ranks items; its SIDs are not used.
"""
import numpy as np
import torch
import torch.nn.functional as F

from models.training.glass import data, evaluate


def _lists(log, sample, score_rows, chunk=256, depth=20):
    """Ranks of the targets of `sample` under score_rows(samples) -> float [B, items]."""

    def lister(part):
        scores = score_rows(part)
        if log.unseen_only:
            scores = scores.masked_fill(evaluate.seen_mask(log, part, log.device), -float("inf"))
        return scores.topk(depth, 1).indices, None

    with torch.no_grad():
        return evaluate.score_lists(log, sample, lister, chunk)


def history_weights(log, sample, decay=1.0, last=0):
    """float [B, items]: sum over each history of decay^age, age in events; last > 0: of the newest so many alone."""
    weights = torch.zeros(len(sample), log.items, device=log.device)
    lengths = log.moment_first[sample] - log.moment_start[sample]
    kept = np.minimum(lengths, last) if last else lengths
    row = np.repeat(np.arange(len(sample)), kept)
    age = np.arange(len(row)) - np.repeat(np.cumsum(kept) - kept, kept)
    item = log.item[np.repeat(log.moment_first[sample], kept) - 1 - age]
    value = torch.from_numpy((decay ** age).astype(np.float32)).to(log.device)
    index = torch.from_numpy(row * log.items + item).to(log.device)
    return weights.view(-1).scatter_add_(0, index, value).view(weights.shape)


def popularity(log, sample):
    counts = torch.from_numpy(log.train_counts().astype(np.float32)).to(log.device)
    return _lists(log, sample, lambda part: counts.expand(len(part), -1))


def own_counts(log, sample, decay=0.998):
    """What the user chose most, recent choices weighing more; popularity breaks ties. Only where items repeat."""
    counts = torch.from_numpy(log.train_counts().astype(np.float32)).to(log.device)
    return _lists(log, sample, lambda part: history_weights(log, part, decay) + 1e-3 * counts / counts.max())


def item_similarity(log, shrink=10.0, window=0):
    """float [items, items]: cosine of the users (or, window > 0, runs of so many events) they share."""
    train = log.split == data.TRAIN
    group = log.event_user[train].astype(np.int64)
    if window:
        position = np.arange(len(log.item))[train] - log.offsets[log.event_user[train]]
        group = group * 1_000_000 + position // window
    _, group = np.unique(group, return_inverse=True)
    item = torch.from_numpy(log.item[train]).to(log.device)
    group = torch.from_numpy(group).to(log.device)
    shared = torch.zeros(log.items, log.items, device=log.device)
    number = int(group.max()) + 1
    for begin in range(0, number, 2048):
        inside = (group >= begin) & (group < begin + 2048)
        matrix = torch.zeros(2048, log.items, device=log.device)
        matrix[group[inside] - begin, item[inside]] = 1.0
        shared += matrix.t() @ matrix
    diagonal = shared.diagonal().clone()
    similarity = shared / (diagonal.sqrt()[:, None] * diagonal.sqrt()[None] + shrink)
    similarity.fill_diagonal_(0)
    return similarity


def item_knn(log, sample, similarity, decay=0.9, last=50, own=0.0, neighbours=200):
    """Decayed sum of similarities to the newest items; `own` adds the history itself, for logs where items repeat."""
    if neighbours < log.items:
        floor = similarity.topk(neighbours, 1).values[:, -1:]
        similarity = torch.where(similarity >= floor, similarity, torch.zeros_like(similarity))

    def score_rows(part):
        scores = history_weights(log, part, decay, last) @ similarity
        return scores + own * history_weights(log, part, 0.998) if own else scores

    return _lists(log, sample, score_rows)


class SasRec(torch.nn.Module):
    """Causal self-attention over the newest `length` items; next-item cross-entropy over the whole catalogue.

    Trained like GLASS by moments: the state at the last item before a moment predicts the items of that moment, so that
    members of one moment never see each other. The item table is input and output (tied); a bias holds popularity.
    """

    def __init__(self, log, seed=0, d=64, layers=2, heads=2, length=100, dropout=0.3):
        super().__init__()
        torch.manual_seed(seed)
        self.length, self.heads, self.dropout = length, heads, dropout
        self.table = torch.nn.Parameter(torch.randn(log.items, d) * 0.05)
        self.position = torch.nn.Parameter(torch.randn(length, d) * 0.02)
        counts = torch.from_numpy(log.train_counts().astype(np.float32))
        self.bias = torch.nn.Parameter(torch.log((counts + 0.5) / counts.sum()))
        self.layers = torch.nn.ModuleList(torch.nn.ModuleDict({
            "n1": torch.nn.LayerNorm(d), "n2": torch.nn.LayerNorm(d), "qkv": torch.nn.Linear(d, 3 * d),
            "o": torch.nn.Linear(d, d), "w1": torch.nn.Linear(d, 4 * d), "w2": torch.nn.Linear(4 * d, d)})
            for _ in range(layers))
        self.norm = torch.nn.LayerNorm(d)

    def states(self, log, sample, every=False):
        """Final state [B, d] of each sample's history, or with `every` all states [B, length, d] with positions."""
        n = self.length
        position = log.first[sample].unsqueeze(1) + torch.arange(-n, 0, device=log.device)
        inside = position >= log.start[sample].unsqueeze(1)
        x = self.table[log.d_item[position.clamp(min=0)]] + self.position
        x = F.dropout(x, self.dropout, self.training)
        hidden = ~inside[:, None, None, :] | torch.ones(n, n, dtype=torch.bool, device=log.device).triu(1)
        b = x.shape[0]
        for i, layer in enumerate(self.layers):
            last = i + 1 == len(self.layers) and not every
            z = layer["n1"](x)
            q, k, v = layer["qkv"](z).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            mask = hidden
            if last:  # only the newest state is read
                q, x, mask = q[:, :, -1:], x[:, -1:], hidden[:, :, -1:]
            scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).float().masked_fill(mask, -1e9)
            o = (torch.softmax(scores, -1).to(v.dtype) @ v).transpose(1, 2).flatten(2)
            x = x + F.dropout(layer["o"](o), self.dropout, self.training)
            x = x + F.dropout(layer["w2"](torch.relu(layer["w1"](layer["n2"](x)))), self.dropout, self.training)
        x = self.norm(x)
        return (x, position, inside) if every else x[:, -1]

    def loss(self, log, sample, begin, options):
        """Every state of the window that stands right before a training moment predicts one item of it."""
        x, position, inside = self.states(log, sample, every=True)
        following = (position + 1).clamp(min=0)
        size = log.train_moment_size[following]
        chosen = following + (begin.unsqueeze(1) + position) % size.clamp(min=1)
        target = log.d_item[chosen.clamp(max=len(log.item) - 1)].flatten()
        scores = F.linear(x, self.table, self.bias).float().flatten(0, 1)
        loss = F.cross_entropy(scores, target, reduction="none")
        valid = (inside & (size > 0)).flatten()
        return (loss * valid).sum() / valid.sum().clamp(min=1)

    def rank(self, log, sample, options):
        was = self.training
        self.eval()
        result = _lists(log, sample, lambda part: F.linear(
            self.states(log, torch.from_numpy(part).to(log.device)), self.table, self.bias))
        self.train(was)
        return result
