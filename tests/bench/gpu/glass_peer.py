#!/usr/bin/env python3
"""GLASS at the released size on a card: ours beside its PyTorch twin, alternating in one run.

    PYTHONPATH=. python3 tests/bench/gpu/glass_peer.py [--ours build/release/bin/glass_cuda_bench] [--rounds 3]

The twin (models/training/glass) runs as a careful user of PyTorch would run it: inference mode; K/V of earlier positions
cached; K/V of the memory computed once and shared by all beams; K/V of retrieved tokens, relative biases and joined
matrices made at load; retrieved sets as ready-made ln(count) rows by first code and the catalogue's valid prefixes as
bitmaps, both on the card; compiled by Inductor or not, whichever is faster here; one CUDA graph from the encoder's
inputs to the beams. bf16 throughout, and fp32 with TF32 products off and on. d 96, 6 heads x 32, FFN 1024, 4 + 4 layers, levels
[64, 128, 128], vocabulary 328, 151 slots, history 1,000. Times are of the device: CUDA events around graph replays.
"""
import argparse
import collections
import json
import statistics
import subprocess
import time

import numpy as np
import torch

from models.training.glass import config as glass_config
from models.training.glass import decode, history, twin


class LogCounts:
    """twin.CountTable whose logarithms are ready."""

    def __init__(self, bias):
        self.bias = bias

    attend = twin.CountTable.attend


class BitTrie:
    """decode.Trie by table look-up: for codebooks this small nothing is faster."""

    def __init__(self, sid, levels, device):
        self.levels, self.tables = levels, []
        sid = torch.as_tensor(sid, device=device)
        key, size = torch.zeros_like(sid[:, 0]), 1
        for level, codes in enumerate(levels):
            key, size = key * codes + sid[:, level], size * codes
            table = torch.zeros(size, dtype=torch.bool, device=device)
            table[key] = True
            self.tables.append(table.reshape(-1, codes))

    def mask(self, level, prefix):
        return self.tables[level][prefix]


class Prepared(twin.Glass):
    """The twin with what depends on weights alone computed once."""

    def prepare(self):
        self._joined, self._biases = {}, {}
        self._tables = [[x.contiguous() for x in table] for table in super().retrieved_tables()]
        return self

    def retrieved_tables(self):
        return self._tables

    def _heads(self, name, x, parts):
        if not hasattr(self, "_joined"):
            return super()._heads(name, x, parts)
        key = (name, parts)
        if key not in self._joined:
            self._joined[key] = torch.cat([self.w(f"{name}.{part}") for part in parts]).contiguous()
        y = torch.nn.functional.linear(x, self._joined[key])
        y = y.reshape(y.shape[:-1] + (len(parts), self.config.heads, self.config.d_kv)).transpose(-2, -4)
        return list(y.unbind(-3))

    def _self_bias(self, stack, first, count, keys, device):
        key = (stack, first, count, keys)
        if key not in self._biases:
            self._biases[key] = super()._self_bias(stack, first, count, keys, device).contiguous()
        return self._biases[key]


class Peer:
    def __init__(self, batch, beam, dtype, compiled):
        r = np.random.default_rng(1)
        self.config = glass_config.make("COMPAT", tokens="DENSE", vocabulary=328)
        codes = np.stack([r.integers(0, size, 10_000) for size in self.config.levels], 1)
        embedding = r.normal(size=(10_000, self.config.embedding_width)).astype(np.float32) * 0.1
        catalogue = history.Catalogue(self.config, codes, embedding)
        self.model = Prepared(self.config, seed=1, std=0.3).eval().cuda().to(dtype).prepare()
        self.trie = BitTrie(codes, self.config.levels, "cuda")
        short, features, bias = [], [], []
        for _ in range(min(batch, 8)):
            user = history.recount(catalogue, list(r.integers(0, 10_000, 1_000)))
            short.append(user.short_tokens())
            features.append(user.tier_features())
            counts = np.zeros((self.config.levels[0], self.config.vocabulary), np.float32)
            for code in range(self.config.levels[0]):
                for token in user.retrieved_tokens(code):
                    counts[code, token] += token != 0
            counts[:, 0] = counts.sum(1) == 0
            with np.errstate(divide="ignore"):
                bias.append(np.maximum(np.log(counts), -1e9))
        pick = [i % len(short) for i in range(batch)]
        self.short = torch.as_tensor(np.stack([short[i] for i in pick])).cuda()
        self.features = torch.as_tensor(np.stack([features[i] for i in pick]), dtype=dtype).cuda()
        self.bias = torch.as_tensor(np.stack([bias[i] for i in pick]), dtype=dtype).cuda()
        self.users = torch.arange(batch, device="cuda")[:, None]
        self.beam = beam
        self.parts = {"encode": self.encode, "search": self.search}
        with torch.inference_mode():
            self.search()  # fills what is computed once
        if compiled:
            # One compiled function for the whole request: Inductor fuses across the steps.
            self.parts = {name: torch.compile(f, fullgraph=True, dynamic=False) for name, f in self.parts.items()}

    def encode(self):
        memory, visible = self.model.encode(self.short, self.features)
        return self.model.memory_kv(memory), visible

    def search(self):
        found = decode.search(self.model, self.short, self.features,
                              lambda codes: LogCounts(self.bias[self.users, codes]), self.beam, "valid", self.trie)
        return found.tokens, found.score

    def graph(self, part):
        f = self.parts[part]
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                f()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.kept = f()
        return graph


def milliseconds(graph, seconds=0.4):
    """Median of single replays, each between two events."""
    for _ in range(5):
        graph.replay()
    torch.cuda.synchronize()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 10 or time.perf_counter() < end:
        pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(10)]
        for start, stop in pairs:
            start.record()
            graph.replay()
            stop.record()
        torch.cuda.synchronize()
        times += [start.elapsed_time(stop) for start, stop in pairs]
    return statistics.median(times)


DTYPES = {"bf16": (torch.bfloat16, False), "fp32": (torch.float32, False), "tf32": (torch.float32, True)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", help="the program glass_cuda_bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shapes", default="1x20,1x256,32x20,256x20", help="users x beam")
    parser.add_argument("--dtypes", default="bf16,fp32,tf32")
    parser.add_argument("--forms", default="graph,compiled+graph")
    parser.add_argument("--parts", default="encode,search")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}; ms on the device, medians")
    shapes = [tuple(map(int, shape.split("x"))) for shape in arguments.shapes.split(",")]
    graphs, rows, kept = {}, collections.defaultdict(list), []
    with torch.inference_mode():
        for form in arguments.forms.split(","):
            for batch, beam in shapes:
                for name in arguments.dtypes.split(","):
                    dtype, tf32 = DTYPES[name]
                    torch.backends.cuda.matmul.allow_tf32 = tf32
                    start = time.perf_counter()
                    peer = Peer(batch, beam, dtype, form.startswith("compiled"))
                    kept.append(peer)
                    for part in arguments.parts.split(","):
                        key = f"torch {name} {form} {batch}x{beam} {part}"
                        try:
                            graphs[key] = peer.graph(part)
                            print(f"{key}: {milliseconds(graphs[key], 0.2):.3f} (ready after {time.perf_counter() - start:.0f} s)",
                                  flush=True)
                        except Exception as e:  # a form that this torch cannot capture is not the peer's best
                            print(f"{key}: {type(e).__name__} {str(e)[:300]}", flush=True)
        for _ in range(arguments.rounds):
            if arguments.ours:
                done = subprocess.run([arguments.ours, "--shapes", arguments.shapes, "--json"], stdout=subprocess.PIPE, text=True,
                                      check=True)
                for key, value in json.loads(done.stdout.splitlines()[-1]).items():
                    rows[f"ours {key}"].append(value)
            for key, graph in graphs.items():
                rows[key].append(milliseconds(graph))
    for key, values in rows.items():
        print(f"{key:44} {statistics.median(values):8.3f}   ({min(values):.3f} .. {max(values):.3f})")


if __name__ == "__main__":
    main()
