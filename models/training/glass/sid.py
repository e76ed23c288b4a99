"""Semantic IDs: three codes per item from a residual quantiser over item embeddings.

    python3 -m models.training.glass.sid --data DATA --out DATA/sid-64.safetensors [--levels 64,128,128]
        [--kind RQ_KMEANS]

RQ_VAE learns an encoder to a small latent space, where each level picks the nearest code of what the levels before left
over; RQ_KMEANS does the same with k-means on the embeddings themselves. Codebook resizing is nothing but a smaller
first level: its buckets are denser, so that hard search finds more. Collisions (items that share all three codes) are
not resolved: an item list per SID, best prior first, serves them.

The written file holds `sid` I64 [items, 3], `codebook.0..2` F32 [size, latent] and for RQ_VAE `encoder.{i}.{w,b}`;
`assign` gives a new item its codes from these frozen arrays, as the engine does.
"""
import argparse
import hashlib
import json
import math
import os

import numpy as np
import torch
import torch.nn.functional as F

from models.training import tensor_file

DEFAULTS = {"levels": (64, 128, 128), "kind": "RQ_VAE", "hidden": (512, 256, 128, 64), "latent": 32, "epochs": 300,
            "batch": 2048, "lr": 1e-3, "weight_decay": 1e-4, "warmup": 5, "commitment": 0.25, "sinkhorn_eps": 0.003,
            "sinkhorn_steps": 50, "evaluate_every": 50, "kmeans_steps": 100, "clip": 1.0, "seed": 0, "revive_every": 20}


def distances(rows, codebook):
    """Squared distances [n, size]; the rows' own norm is left out, which no argmin needs."""
    return codebook.square().sum(1) - 2 * rows @ codebook.t()


def kmeans(rows, size, steps, generator, weight=None):
    """Centres [size, width] of Lloyd's algorithm from distinct random rows; an empty cluster takes a far row."""
    size_start = min(size, len(rows))
    centres = rows[torch.randperm(len(rows), generator=generator)[:size_start]].clone()
    if size_start < size:
        centres = torch.cat([centres, torch.full((size - size_start, rows.shape[1]), 1e3)])
    for _ in range(steps):
        d = distances(rows, centres)
        near, index = d.min(1)
        sums = torch.zeros_like(centres).index_add_(0, index, rows)
        counts = torch.zeros(size).index_add_(0, index, torch.ones(len(rows)))
        fresh = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
        empty = torch.nonzero(counts == 0).flatten()
        far = (near + rows.square().sum(1)).topk(min(len(empty), len(rows))).indices
        fresh[empty[:len(far)]] = rows[far]
        if torch.equal(fresh, centres):
            break
        centres = fresh
    return centres


def residual_codes(rows, codebooks):
    """int64 [n, levels]: the nearest code of the running residual at every level."""
    codes = []
    for codebook in codebooks:
        code = distances(rows, codebook).argmin(1)
        rows = rows - codebook[code]
        codes.append(code)
    return torch.stack(codes, 1)


def sinkhorn(d, eps, steps):
    """Balanced soft assignment of squared distances [n, size]: each code gets an equal share of the rows."""
    d = d.double()
    middle = (d.max() + d.min()) / 2
    q = torch.exp(-(d - middle) / (d.max() - middle).clamp(min=1e-9) / eps).t()
    q = q / q.sum()
    for _ in range(steps):
        q = q / q.sum(1, keepdim=True).clamp(min=1e-300) / q.shape[0]
        q = q / q.sum(0, keepdim=True).clamp(min=1e-300) / q.shape[1]
    return (q * q.shape[1]).t()


class RqVae(torch.nn.Module):
    """MLP encoder, residual codebooks, mirrored decoder. widths: input, hidden..., latent."""

    def __init__(self, widths, levels, seed):
        super().__init__()
        torch.manual_seed(seed)
        pairs = list(zip(widths[:-1], widths[1:]))
        self.encoder = torch.nn.ModuleList(torch.nn.Linear(a, b) for a, b in pairs)
        self.decoder = torch.nn.ModuleList(torch.nn.Linear(b, a) for a, b in reversed(pairs))
        self.codebooks = torch.nn.ParameterList(torch.nn.Parameter(torch.zeros(size, widths[-1])) for size in levels)

    @staticmethod
    def _stack(layers, x):
        for i, layer in enumerate(layers):
            x = layer(x if i == 0 else torch.relu(x))
        return x

    def encode(self, x):
        return self._stack(self.encoder, x)

    def forward(self, x, options):
        """(reconstruction + codebook losses, codes)."""
        latent = self.encode(x)
        rest, total, loss, codes = latent, torch.zeros_like(latent), 0.0, []
        for level, codebook in enumerate(self.codebooks):
            d = distances(rest.detach(), codebook.detach())
            if level == len(self.codebooks) - 1 and options["sinkhorn_eps"] > 0:
                code = sinkhorn(d + rest.detach().square().sum(1, keepdim=True), options["sinkhorn_eps"],
                                options["sinkhorn_steps"]).argmax(1)
            else:
                code = d.argmin(1)
            row = codebook[code]
            loss = loss + F.mse_loss(row, rest.detach()) + options["commitment"] * F.mse_loss(rest, row.detach())
            total, rest = total + row, rest - row.detach()
            codes.append(code)
        straight = latent + (total - latent).detach()
        reconstruction = F.mse_loss(self._stack(self.decoder, straight), x)
        return reconstruction + loss / len(self.codebooks), torch.stack(codes, 1)

    @torch.no_grad()
    def start(self, rows, steps, generator):
        """Codebooks by k-means on the residuals of `rows` (all, or a first batch)."""
        rest = self.encode(rows)
        for codebook in self.codebooks:
            codebook.copy_(kmeans(rest, len(codebook), steps, generator))
            rest = rest - codebook[distances(rest, codebook).argmin(1)]

    @torch.no_grad()
    def revive(self, rows, generator):
        """Moves codes that no row uses onto residuals of random rows. Counts them."""
        rest, moved = self.encode(rows), 0
        for codebook in self.codebooks:
            code = distances(rest, codebook).argmin(1)
            unused = torch.nonzero(torch.bincount(code, minlength=len(codebook)) == 0).flatten()
            picked = torch.randperm(len(rest), generator=generator)[:len(unused)]
            codebook[unused[:len(picked)]] = rest[picked]
            moved += len(unused)
            rest = rest - codebook[distances(rest, codebook).argmin(1)]
        return moved


def report(sid, levels):
    """Collisions and utilisation: what a card states about SIDs [items, 3]."""
    sid = np.asarray(sid)
    _, counts = np.unique(sid, axis=0, return_counts=True)
    result = {"items": int(len(sid)), "distinct": int(len(counts)),
              "collision_rate": float((len(sid) - len(counts)) / max(1, len(sid))),
              "items_alone": float((counts == 1).sum() / max(1, len(sid))), "largest_collision": int(counts.max())}
    for level, size in enumerate(levels):
        share = np.bincount(sid[:, level], minlength=size) / max(1, len(sid))
        used = share[share > 0]
        result[f"level_{level}"] = {"size": int(size), "used": int(len(used)), "largest_share": float(share.max()),
                                    "perplexity": float(np.exp(-(used * np.log(used)).sum()))}
    return result


def train(embedding, **options):
    """{sid, codebook.i, encoder.i.w/b} as numpy, and the report. Deterministic for a seed on one machine."""
    options = {**DEFAULTS, **options}
    rows = torch.from_numpy(np.array(embedding, np.float32))
    if not torch.isfinite(rows).all():
        raise ValueError("embedding: NaN or infinity")
    generator = torch.Generator().manual_seed(options["seed"])
    if options["kind"] == "RQ_KMEANS":
        rest, books = rows, []
        for size in options["levels"]:
            books.append(kmeans(rest, size, options["kmeans_steps"], generator))
            rest = rest - books[-1][distances(rest, books[-1]).argmin(1)]
        model = None
    elif options["kind"] == "RQ_VAE":
        model = _train_vae(rows, options, generator)
        books = [codebook.detach() for codebook in model.codebooks]
    else:
        raise ValueError(f"kind: {options['kind']}, expected RQ_VAE or RQ_KMEANS")
    tensors = {f"codebook.{i}": book.numpy() for i, book in enumerate(books)}
    for i, layer in enumerate(model.encoder if model else ()):
        tensors[f"encoder.{i}.w"] = layer.weight.detach().numpy()
        tensors[f"encoder.{i}.b"] = layer.bias.detach().numpy()
    tensors["sid"] = assign(tensors, embedding)
    return tensors, report(tensors["sid"], options["levels"])


def _train_vae(rows, options, generator):
    widths = (rows.shape[1],) + tuple(options["hidden"]) + (options["latent"],)
    model = RqVae(widths, options["levels"], options["seed"])
    model.start(rows, options["kmeans_steps"], generator)
    tool = torch.optim.AdamW(model.parameters(), lr=options["lr"], weight_decay=options["weight_decay"])
    steps_per_epoch = math.ceil(len(rows) / options["batch"])
    warmup, total = options["warmup"] * steps_per_epoch, options["epochs"] * steps_per_epoch
    plan = torch.optim.lr_scheduler.LambdaLR(tool, lambda step: min((step + 1) / max(1, warmup), max(
        0.0, (total - step) / max(1, total - warmup))))
    best, kept = None, None
    for epoch in range(options["epochs"]):
        for index in torch.randperm(len(rows), generator=generator).split(options["batch"]):
            loss, _ = model(rows[index], options)
            tool.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), options["clip"])
            tool.step()
            plan.step()
        last = epoch + 1 == options["epochs"]
        if options["revive_every"] and (epoch + 1) % options["revive_every"] == 0 and epoch < 0.7 * options["epochs"]:
            model.revive(rows, generator)
        if (epoch + 1) % options["evaluate_every"] == 0 or last:
            with torch.no_grad():
                codes = residual_codes(model.encode(rows), list(model.codebooks))
            rate = report(codes.numpy(), options["levels"])["collision_rate"]
            if best is None or rate < best:
                best, kept = rate, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(kept)
    return model


def assign(tensors, embedding):
    """SIDs int64 [n, 3] of embeddings [n, width] from frozen arrays: what Catalog.Upsert does for a new item."""
    width = tensors["encoder.0.w"].shape[1] if "encoder.0.w" in tensors else tensors["codebook.0"].shape[1]
    embedding = np.asarray(embedding)
    if embedding.ndim != 2 or embedding.shape[1] != width:
        raise ValueError(f"embedding: shape {embedding.shape}, expected [items, {width}]")
    if not np.isfinite(embedding).all():
        raise ValueError("embedding: NaN or infinity")
    rows, i = torch.from_numpy(np.array(embedding, np.float32)), 0
    while f"encoder.{i}.w" in tensors:
        rows = F.linear(rows if i == 0 else torch.relu(rows), torch.from_numpy(np.array(tensors[f"encoder.{i}.w"])),
                        torch.from_numpy(np.array(tensors[f"encoder.{i}.b"])))
        i += 1
    books = [torch.from_numpy(np.array(tensors[f"codebook.{level}"])) for level in range(3)]
    return residual_codes(rows, books).numpy()


def version(tensors, prototype):
    """16 hex digits that name SIDs, codebooks and prototypes together; a model runs only with the version it names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + np.ascontiguousarray(tensors[name]).tobytes())
    digest.update(np.ascontiguousarray(prototype, dtype=np.float32).tobytes())
    return digest.hexdigest()[:16]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with items.safetensors (embedding F32 [items, width])")
    parser.add_argument("--out", required=True)
    parser.add_argument("--levels", default="64,128,128", help="codebook sizes; a smaller first makes denser buckets")
    parser.add_argument("--kind", default="RQ_VAE", choices=("RQ_VAE", "RQ_KMEANS"))
    parser.add_argument("--epochs", type=int, default=DEFAULTS["epochs"])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    items, _ = tensor_file.read_tensors(os.path.join(arguments.data, "items.safetensors"))
    levels = tuple(int(size) for size in arguments.levels.split(","))
    tensors, text = train(items["embedding"], levels=levels, kind=arguments.kind, epochs=arguments.epochs,
                          seed=arguments.seed)
    tensor_file.write_tensors(arguments.out, tensors, {"kind": arguments.kind, "report": json.dumps(text),
                                                       "levels": arguments.levels})
    print(json.dumps(text))


if __name__ == "__main__":
    main()
