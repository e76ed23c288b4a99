"""From beams to items and from items to Hit@K and NDCG@K.

A beam is a SID; its items come best prior first (counts in the training part), at most `per_sid` of them; items of the
user's history are left out where the data set asks for unseen items only. A target's rank in the resulting list is all
that is kept: 255 = not among the first `depth`.
"""
import numpy as np
import torch
import torch.nn.functional as F

from models.training.glass import decode

CUTS = (1, 5, 10, 20)
MISSED = 255


class Postings:
    """SID -> items by falling prior, as CSR over the distinct SIDs."""

    def __init__(self, log, device):
        levels = log.config.levels
        sid, prior = log.catalogue.sid, log.train_counts()
        key = (sid[:, 0] * levels[1] + sid[:, 1]) * levels[2] + sid[:, 2]
        order = np.lexsort((np.arange(len(key)), -prior, key))
        self.keys, begin = np.unique(key[order], return_index=True)
        self.begin = torch.from_numpy(np.r_[begin, len(key)]).to(device)
        self.items = torch.from_numpy(order).to(device)
        self.keys = torch.from_numpy(self.keys).to(device)
        self.levels = levels

    def expand(self, codes, score, per_sid):
        """Items [B, W * per_sid] of SIDs [B, W, 3] in beam order, -1 where a SID has fewer or no score."""
        key = (codes[..., 0] * self.levels[1] + codes[..., 1]) * self.levels[2] + codes[..., 2]
        at = torch.searchsorted(self.keys, key).clamp(max=len(self.keys) - 1)
        known = (self.keys[at] == key) & torch.isfinite(score)
        slot = torch.arange(per_sid, device=codes.device)
        rows = self.begin[at].unsqueeze(-1) + slot
        inside = (rows < self.begin[at + 1].unsqueeze(-1)) & known.unsqueeze(-1)
        items = self.items[rows.clamp(max=len(self.items) - 1)]
        return torch.where(inside, items, torch.full_like(items, -1)).flatten(1)


def seen_mask(log, sample, device):
    """bool [B, items]: what each sample's history holds."""
    lengths = log.moment_first[sample] - log.moment_start[sample]
    row = np.repeat(np.arange(len(sample)), lengths)
    position = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + np.repeat(
        log.moment_start[sample], lengths)
    mask = torch.zeros(len(sample), log.items, dtype=torch.bool, device=device)
    mask[torch.from_numpy(row).to(device), torch.from_numpy(log.item[position]).to(device)] = True
    return mask


def first_items(items, hidden, depth):
    """The first `depth` items of each row [B, n] that are neither -1 nor hidden [B, n], padded with -1."""
    good = (items >= 0) & ~hidden
    place = torch.cumsum(good.to(torch.int64), 1) - 1
    place = torch.where(good & (place < depth), place, torch.full_like(place, depth))
    out = torch.full((items.shape[0], depth + 1), -1, dtype=items.dtype, device=items.device)
    return out.scatter(1, place, items)[:, :depth]


@torch.no_grad()
def recommend(model, log, sample, beam, postings, trie, per_sid=50, depth=20, mode="valid"):
    """(items [B, depth], SID keys of the beams [B, W]) for numpy sample numbers."""
    device = log.device
    index = torch.from_numpy(sample).to(device)
    features = log.features[index] if log.features is not None else None
    beams = decode.search(model, log.short_tokens(index), features, lambda codes: log.retrieve(index, codes), beam,
                          mode, trie)
    codes = beams.codes(log.config)
    items = postings.expand(codes, beams.score, per_sid)
    hidden = torch.zeros_like(items, dtype=torch.bool)
    if log.unseen_only:
        hidden = torch.gather(seen_mask(log, sample, device), 1, items.clamp(min=0))
    levels = log.config.levels
    keys = (codes[..., 0] * levels[1] + codes[..., 1]) * levels[2] + codes[..., 2]
    return first_items(items, hidden, depth), torch.where(torch.isfinite(beams.score), keys, torch.full_like(keys, -1))


def ranks(wanted, listed):
    """uint8 [targets]: place of each wanted value [targets] in its row [targets, depth], MISSED if absent."""
    found = listed == wanted.unsqueeze(-1)
    place = torch.where(found.any(-1), found.to(torch.int64).argmax(-1), torch.full_like(wanted, MISSED))
    return place.clamp(max=MISSED).to(torch.uint8).cpu().numpy()


def target_rows(log, sample):
    """(row of `sample`, item) of every target of every sample, numpy."""
    lengths = log.moment_end[sample] - log.moment_first[sample]
    row = np.repeat(np.arange(len(sample)), lengths)
    position = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + np.repeat(
        log.moment_first[sample], lengths)
    return row, log.item[position]


def score_lists(log, sample, lister, chunk=256):
    """{"item": ranks, "sid": ranks or None} of the targets of `sample`; lister(samples) -> (items, SID keys | None)."""
    out = {"item": [], "sid": []}
    levels = log.config.levels
    for begin in range(0, len(sample), chunk):
        part = sample[begin:begin + chunk]
        items, keys = lister(part)
        row, item = target_rows(log, part)
        row, item = torch.from_numpy(row).to(log.device), torch.from_numpy(item).to(log.device)
        out["item"].append(ranks(item, items[row]))
        if keys is not None:
            sid = log.sid[item]
            out["sid"].append(ranks((sid[:, 0] * levels[1] + sid[:, 1]) * levels[2] + sid[:, 2], keys[row][:, :20]))
    return {name: np.concatenate(parts) if parts else None for name, parts in out.items()}


def metrics(rank, weight=None):
    """{"hit@K", "ndcg@K"} of ranks uint8, one relevant item per target."""
    rank = rank.astype(np.int64)
    gain = np.where(rank < MISSED, 1 / np.log2(rank + 2.0), 0.0)
    result = {}
    for cut in CUTS:
        inside = rank < cut
        result[f"hit@{cut}"] = float(np.average(inside, weights=weight))
        result[f"ndcg@{cut}"] = float(np.average(gain * inside, weights=weight))
    return result


@torch.no_grad()
def losses(model, log, sample, chunk=512, targets=8):
    """Mean cross-entropy of the first, second and third code, each given the true codes before it (nats)."""
    was = model.training
    model.eval()
    total, count = torch.zeros(3, device=log.device), 0.0
    for begin in range(0, len(sample), chunk):
        index = torch.from_numpy(sample[begin:begin + chunk]).to(log.device)
        batch = log.batch(index, targets, torch.zeros_like(index))
        logits = model.logits(batch.short, batch.features, batch.tokens, log.retrieve(index, batch.codes))
        loss = F.cross_entropy(logits.flatten(0, 2), batch.tokens.flatten(), reduction="none")
        total += (loss.reshape(batch.tokens.shape) * batch.valid.unsqueeze(-1)).sum((0, 1))
        count += float(batch.valid.sum())
    model.train(was)
    return [float(x) for x in total / count]


def evaluate(model, log, sample, beam=50, chunk=512, mode="valid"):
    """Ranks of one model over numpy sample numbers; evaluates with the model's current weights."""
    was = model.training
    model.eval()
    postings = Postings(log, log.device)
    trie = decode.Trie(log.catalogue.sid, log.config.levels, log.device)
    result = score_lists(log, sample, lambda part: recommend(model, log, part, beam, postings, trie, mode=mode), chunk)
    model.train(was)
    return result
