"""Training inputs drawn anew every time: more histories than there are moments.

A log of few users has few moments, and a network soon knows each of them by heart. These changes of a history keep
what matters for the next choice, and leave the targets alone:
- keep_min: every event stays with a probability that is drawn per sample from [keep_min, 1];
- two_sided: for this share of the samples the history is everything around the targets in the user's training part,
  ordered by distance (farthest first; before and after take turns), so that what was chosen shortly after a target
  predicts it as well as what was chosen shortly before. Item-kNN draws its strength from the same symmetry;
- long_dropout: this share of the samples loses its long part, tiers and buckets together. They tell users apart so well
  that a network would otherwise learn the users by heart instead of what their long parts have in common.
The window, tiers and buckets are then counted from the drawn history by the rules of history.py. Validation and test
always read real histories, and no event after the training part is ever drawn.

Shapes: B samples, T targets, N slots of a drawn history (oldest first), V vocabulary.
"""
import torch

from models.training.glass import data

SPAN = 1024  # of each side, the nearest so many events can be drawn


def wanted(options):
    return options["keep_min"] < 1 or options["two_sided"] > 0 or options["long_dropout"] > 0


def slots(log, sample, end, two_sided, span=SPAN):
    """(event rows int64 [B, N], which exist bool [B, N]) of whole histories; end int64 [B]: first event after the
    targets; two_sided bool [B]."""
    distance = torch.arange(span, 0, -1, device=log.device)
    before = log.first[sample].unsqueeze(1) - distance
    exists = before >= log.start[sample].unsqueeze(1)
    after = end.unsqueeze(1) + distance - 1
    late = (after < log.train_end[log.d_user[sample]].unsqueeze(1)) & two_sided.unsqueeze(1)
    rows, good = torch.stack([after, before], 2).flatten(1), torch.stack([late, exists], 2).flatten(1)
    return rows.clamp(0, len(log.d_item) - 1), good


def newest_first(kept):
    """int64, as kept: 0 for the newest kept of each row along the last dimension, 1 for the one before, ..."""
    counted = kept.to(torch.int32)
    return (counted.flip(-1).cumsum(-1, dtype=torch.int32).flip(-1) - counted).to(torch.int64)


def window(log, items, kept, age):
    """Short tokens int64 [B, 3 * short_items] of drawn histories, left-padded."""
    n = log.config.short_items
    place = torch.where(kept & (age < n), n - 1 - age, torch.full_like(age, n))
    out = torch.full((len(items), n + 1), -1, dtype=items.dtype, device=items.device).scatter_(1, place, items)[:, :n]
    return (log.tokens[out.clamp(min=0)] * (out >= 0).unsqueeze(-1)).flatten(1)


def tiers(log, items, long):
    """Tier features float32 [B, codes * bins] of long parts: counts over items times a 0/1 table, exact in float32."""
    if log.tier_table is None:
        bins = torch.from_numpy(log.catalogue.bins).to(log.device).to(torch.int64)
        table = bins.unsqueeze(-1) == torch.arange(log.config.bins, device=log.device)
        log.tier_table = table.flatten(1).to(torch.float32)
    counts = torch.zeros(len(items), log.items, device=items.device)
    counts.scatter_add_(1, items, long.to(torch.float32))
    with torch.autocast("cuda" if items.is_cuda else "cpu", enabled=False):
        return (counts @ log.tier_table) / counts.sum(1, keepdim=True).clamp(min=1)


def retrieved(log, items, long, codes):
    """Items int64 [B, T, retrieved_items] of the buckets of codes [B, T], -1 where there are fewer; the rules of
    History.bucket (the order inside is of no matter to attention)."""
    config, limit = log.config, log.config.retrieved_items
    code = log.sid[items, 0].unsqueeze(1)
    out = torch.full(codes.shape + (limit + 1,), -1, dtype=items.dtype, device=items.device)
    spread = items.unsqueeze(1).expand(-1, codes.shape[1], -1)
    used = torch.zeros_like(codes)
    for k in range(config.neighbours + 1):
        mine = long.unsqueeze(1) & (code == (codes if k == 0 else log.neighbours[codes, k - 1]).unsqueeze(-1))
        if k:
            mine = mine & few.unsqueeze(-1)
        place = newest_first(mine) + used.unsqueeze(-1)
        out.scatter_(2, torch.where(mine, place.clamp(max=limit), torch.full_like(place, limit)), spread)
        used = (used + mine.sum(-1)).clamp(max=limit)
        few = used < config.neighbour_below if k == 0 else few
    return out[..., :limit]


def batch(log, sample, begin, options):
    """(data.Batch, twin.CountTable or None): what Log.batch and Log.retrieve yield, of drawn histories."""
    config = log.config
    items, valid = log.targets(sample, options["targets"], begin, options["horizon"])
    end = log.targets_end(sample, options["horizon"])
    sides = torch.rand(len(sample), device=log.device) < options["two_sided"]
    rows, kept = slots(log, sample, end, sides)
    share = options["keep_min"] + (1 - options["keep_min"]) * torch.rand(len(sample), 1, device=log.device)
    kept = kept & (torch.rand(kept.shape, device=log.device) < share)
    history, age = log.d_item[rows], newest_first(kept)
    whole = torch.rand(len(sample), 1, device=log.device) >= options["long_dropout"]
    long = kept & (age >= config.short_items) & whole
    if config.long_items:
        long = long & (age < config.short_items + config.long_items)
    codes, table = log.sid[items][..., 0], None
    if config.retrieved_items:
        table = log.count_table(retrieved(log, history, long, codes))
    return data.Batch(sample=sample, short=window(log, history, kept, age), items=items, valid=valid, codes=codes,
                      features=tiers(log, history, long) if config.bins else None, tokens=log.tokens[items]), table
