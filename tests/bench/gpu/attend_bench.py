#!/usr/bin/env python3
"""Times attention on a Hopper GPU: ours and PyTorch's, interleaved in one process, every launch inside a CUDA graph.

Each shape has several sets of users, more than the L2 holds, and a graph runs through all of them; a time is the graph's over
its launches, the median of --repeats replays. Peers get contiguous K/V (bias folded already) and write their LSE; ours reads
pages in random order, adds segment biases, sees the self key and merges its splits.

    attend_bench.py --lib NAME=PATH [--lib ...] [--shapes default|quick] [--out results.json]
"""
import argparse
import ctypes
import json
import statistics
import subprocess

import numpy as np
import torch

PROBLEM = np.dtype([("bias", "i8"), ("first_row", "i4"), ("rows", "i4"), ("first_page", "i4"), ("pages", "i4"),
                    ("segments", "i4"), ("bias_stride", "i4"), ("self_segment", "i4"), ("reserved", "i4")])
ENTRY = np.dtype([("page", "i4"), ("above", "i2"), ("below", "i2"), ("boundary", "i2"), ("valid", "i2"), ("reserved", "i4")])


class Args(ctypes.Structure):
    _fields_ = [("heads", ctypes.c_int), ("kv_heads", ctypes.c_int), ("d_h", ctypes.c_int), ("scale", ctypes.c_float),
                ("total_rows", ctypes.c_int64), ("q", ctypes.c_void_p), ("q_stride", ctypes.c_int64),
                ("self_k", ctypes.c_void_p), ("self_v", ctypes.c_void_p), ("self_stride", ctypes.c_int64),
                ("k_pool", ctypes.c_void_p), ("v_pool", ctypes.c_void_p), ("page_stride", ctypes.c_int64),
                ("pool_pages", ctypes.c_int64), ("bias", ctypes.c_void_p), ("pages", ctypes.c_void_p),
                ("items", ctypes.c_void_p),
                ("blocks", ctypes.c_int), ("overlap", ctypes.c_bool), ("o", ctypes.c_void_p), ("o_is_float", ctypes.c_bool), ("o_stride", ctypes.c_int64),
                ("lse", ctypes.c_void_p), ("parts", ctypes.c_void_p), ("counters", ctypes.c_void_p)]


def load(path):
    lib = ctypes.CDLL(path)
    for name in ("bench_plan",):
        getattr(lib, name).restype = ctypes.c_void_p
    for name in ("bench_items", "bench_part_bytes", "bench_counter_bytes", "bench_args_bytes"):
        getattr(lib, name).restype = ctypes.c_size_t
    lib.bench_attend.restype = ctypes.c_char_p
    assert lib.bench_args_bytes() == ctypes.sizeof(Args), "Args differs from kernels/cuda/attend.h"
    return lib


class Shape:
    """`sets` independent batches of users x channels problems with `rows` candidates and `history` K/V rows each."""

    def __init__(self, users, channels, history, rows, heads, d, gen):
        self.users, self.channels, self.history, self.rows, self.heads, self.d = users, channels, history, rows, heads, d
        self.problems, self.scale = users * channels, d ** -0.5
        self.pages = history // 128
        kv_bytes = self.problems * history * heads * d * 4
        self.sets = max(2, -(-160_000_000 // kv_bytes))
        self.flop = 4 * rows * history * d * heads * self.problems
        self.total_rows = self.problems * rows
        normal = lambda *size: torch.randn(*size, device="cuda", generator=gen).bfloat16()
        self.q = [normal(self.total_rows, heads, d) for _ in range(self.sets)]
        self.self_k, self.self_v = normal(self.total_rows, heads, d), normal(self.total_rows, heads, d)
        self.pool_pages = self.sets * self.problems * self.pages
        self.k_pool, self.v_pool = normal(self.pool_pages, heads, 128, d), normal(self.pool_pages, heads, 128, d)
        self.segments = 24
        self.bias = torch.randn(self.problems, heads, self.segments, rows, device="cuda", generator=gen)
        # DESIGN's mix for an even event rate: of 32 pages 19 UNIFORM, 10 SPLIT, 3 FOLDED, newest last.
        rng, ids = np.random.default_rng(1), np.random.default_rng(2).permutation(self.pool_pages)
        self.entries = []
        for at in range(self.sets):
            e = np.zeros((self.problems, self.pages), ENTRY)
            e["page"] = ids[at * e.size:(at + 1) * e.size].reshape(e.shape)
            e["valid"], e["above"], e["below"] = 128, rng.integers(0, self.segments, e.shape), -1
            split = rng.random(e.shape) < 10 / 29
            e["boundary"] = np.where(split, rng.integers(1, 127, e.shape), 0)
            e["below"] = np.where(split, rng.integers(0, self.segments, e.shape), -1)
            for field, value in (("above", -1), ("below", -1), ("boundary", 0)):
                e[field][:, -3:] = value
            self.entries.append(e)
        p = np.zeros(self.problems, PROBLEM)
        p["bias"] = np.arange(self.problems) * heads * self.segments * rows
        p["first_row"], p["rows"], p["segments"] = np.arange(self.problems) * rows, rows, self.segments
        p["first_page"], p["pages"], p["bias_stride"] = np.arange(self.problems) * self.pages, self.pages, rows
        self.problem_table = p

    def contiguous(self, at):
        """K and V [problems, heads, history, d] of set `at`, and q [problems, heads, rows, d]."""
        ids = torch.from_numpy(self.entries[at]["page"].astype(np.int64)).cuda()
        gather = lambda pool: pool[ids].transpose(1, 2).reshape(self.problems, self.heads, self.history, self.d).contiguous()
        q = self.q[at].view(self.problems, self.rows, self.heads, self.d).transpose(1, 2).contiguous()
        return q, gather(self.k_pool), gather(self.v_pool)

    def name(self):
        return f"{self.users}x{self.history}x{self.rows} {self.channels}ch {self.heads}x{self.d}"


def to_device(array):
    return torch.from_numpy(np.frombuffer(array.tobytes(), np.uint8).copy()).cuda()


class Ours:
    def __init__(self, lib, shape, split_pages, item_splits, blocks, overlap=False, o_float=False):
        self.lib, self.shape, s = lib, shape, shape
        plan = ctypes.c_void_p(lib.bench_plan(s.problem_table.ctypes.data_as(ctypes.c_void_p), s.problems, s.heads, s.d, blocks,
                                              split_pages, item_splits))
        items = np.zeros(lib.bench_items(plan, None), np.uint8)
        lib.bench_items(plan, items.ctypes.data_as(ctypes.c_void_p))
        self.parts = torch.empty(lib.bench_part_bytes(plan, s.d) + 16, dtype=torch.uint8, device="cuda")
        self.counters = torch.zeros(lib.bench_counter_bytes(plan, s.d) + 16, dtype=torch.uint8, device="cuda")
        lib.bench_plan_free(plan)
        self.items = to_device(items)
        self.entries = [to_device(e) for e in s.entries]
        self.o = torch.full((s.total_rows, s.heads, s.d), float("nan"), device="cuda",
                            dtype=torch.float32 if o_float else torch.bfloat16)
        self.lse = torch.full((s.total_rows, s.heads), float("nan"), device="cuda")
        width, p = s.heads * s.d, lambda t: t.data_ptr()
        self.args = [Args(s.heads, s.heads, s.d, s.scale, s.total_rows, p(s.q[at]), width, p(s.self_k), p(s.self_v), width,
                          p(s.k_pool), p(s.v_pool), width * 128, s.pool_pages, p(s.bias), p(self.entries[at]),
                          p(self.items), blocks, overlap, p(self.o), o_float, width, p(self.lse),
                          p(self.parts), p(self.counters)) for at in range(s.sets)]

    def launch(self, at):
        error = self.lib.bench_attend(ctypes.byref(self.args[at]), ctypes.c_void_p(torch.cuda.current_stream().cuda_stream))
        assert error is None, error

    def check(self):
        """Relative error in norm against float64, over a sample of rows of every problem and head."""
        s = self.shape
        self.launch(0)
        torch.cuda.synchronize()
        q, k, v = s.contiguous(0)
        pick = torch.randperm(s.rows, device="cuda")[:48]
        rows = torch.arange(s.history) // 128
        e = s.entries[0]
        column = torch.arange(s.history) % 128
        num = den = 0.0
        for b in range(s.problems):
            bias_of = torch.cat([s.bias[b].double(), torch.zeros(s.heads, 1, s.rows, device="cuda")], 1)  # -1: none
            above = torch.from_numpy(e["above"][b].astype(np.int64))[rows]
            below = torch.from_numpy(e["below"][b].astype(np.int64))[rows]
            boundary = torch.from_numpy(e["boundary"][b].astype(np.int64))[rows]
            segment = torch.where(column < boundary, below, above).cuda()
            bias = bias_of[:, segment][:, :, pick].transpose(1, 2)
            logits = (q[b][:, pick].double() @ k[b].double().transpose(1, 2) + bias) * s.scale
            at = slice(b * s.rows, (b + 1) * s.rows)
            mine = lambda t: t[at].transpose(0, 1)[:, pick].double()
            # the bench's problems give the self key segment 0
            self_logit = ((mine(s.q[0]) * mine(s.self_k)).sum(-1) + s.bias[b, :, 0].double()[:, pick]) * s.scale
            logits = torch.cat([logits, self_logit[..., None]], -1)
            weights = logits.softmax(-1)
            want = weights[..., :-1] @ v[b].double() + weights[..., -1:] * mine(s.self_v)
            got = self.o[at].transpose(0, 1)[:, pick].double()
            num += ((got - want) ** 2).sum().item()
            den += (want ** 2).sum().item()
            lse = (self.lse[at].transpose(0, 1)[:, pick].double() - logits.logsumexp(-1)).abs().max().item()
            assert lse < 1e-3, f"LSE off by {lse}"
        assert torch.isfinite(self.o).all() and torch.isfinite(self.lse).all()
        return (num / den) ** 0.5


class Peer:
    def __init__(self, shape, kind):
        self.sets, self.kind, self.shape = [shape.contiguous(at) for at in range(shape.sets)], kind, shape

    def launch(self, at):
        q, k, v = self.sets[at]
        aten = torch.ops.aten
        if self.kind == "cudnn":
            return aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, False, False, scale=self.shape.scale)
        return aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False, False, scale=self.shape.scale)


def graph_of(runner, sets):
    for at in range(sets):
        runner.launch(at)
    torch.cuda.synchronize()
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.graph(graph, stream=stream):
        for at in range(sets):
            runner.launch(at)
    return graph


def interleaved(graphs, repeats, launches):
    """Median microseconds per launch of every graph; each round replays every graph once, in turn."""
    times = {name: [] for name in graphs}
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for i in range(repeats + 5):
        for name, graph in graphs.items():
            graph.replay()  # refills caches and clocks after the other's turn; then the one that counts
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            if i >= 5:
                times[name].append(start.elapsed_time(end) * 1000 / launches)
    return {name: (statistics.median(t), statistics.quantiles(t, n=10)[0], statistics.quantiles(t, n=10)[-1])
            for name, t in times.items()}


SHAPES = {  # users, channels, history, rows, heads, d
    "default": [(8, 2, 4096, 1024, 4, 128), (1, 1, 4096, 1024, 4, 128), (1, 2, 4096, 1024, 4, 128), (1, 2, 4096, 256, 4, 128),
                (1, 2, 1024, 256, 4, 128), (1, 2, 16384, 1024, 4, 128), (8, 2, 4096, 256, 4, 128),
                (8, 2, 4096, 1024, 4, 64), (1, 2, 4096, 1024, 4, 64)],
    "quick": [(8, 2, 4096, 1024, 4, 128), (1, 1, 4096, 1024, 4, 128), (1, 2, 4096, 256, 4, 128), (8, 2, 4096, 1024, 4, 64)],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lib", action="append", default=[], help="NAME=PATH[:SPLIT_PAGES[xITEM_SPLITS][p],...]; 0: the default, p: overlap the previous kernel")
    parser.add_argument("--shapes", default="default", choices=SHAPES)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--peers", default="cudnn,flash")
    parser.add_argument("--out")
    options = parser.parse_args()
    device = torch.cuda.get_device_properties(0)
    blocks = device.multi_processor_count
    clock = lambda: subprocess.run(["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu",
                                    "--format=csv,noheader"], capture_output=True, text=True).stdout.strip()
    print(f"{device.name}, {blocks} multiprocessors, L2 {device.L2_cache_size >> 20} MB, torch {torch.__version__}, "
          f"cuDNN {torch.backends.cudnn.version()}, clocks at start {clock()}")
    variants = []
    for text in options.lib:
        name, _, path = text.partition("=")
        path, _, splits = path.partition(":")
        for split in splits.split(",") if splits else ["0"]:
            pages, _, group = split.rstrip("p").partition("x")
            variants.append((f"{name}/{split}" if splits else name, path, int(pages), int(group or 0), split.endswith("p")))
    libs = {path: load(path) for _, path, *_ in variants}
    gen = torch.Generator(device="cuda").manual_seed(1)
    results = []
    for spec in SHAPES[options.shapes]:
        shape = Shape(*spec, gen)
        runners = {name: Ours(libs[path], shape, split, group, blocks, overlap) for name, path, split, group, overlap in variants}
        errors = {name: r.check() for name, r in runners.items()}
        for peer in filter(None, options.peers.split(",")):
            runners[peer] = Peer(shape, peer)
        graphs = {}
        for name, r in runners.items():
            try:
                graphs[name] = graph_of(r, shape.sets)
            except Exception as e:  # a peer that cannot do a shape is reported, not fatal
                print(f"{name}: {e}")
        times = interleaved(graphs, options.repeats, shape.sets)
        for name, (median, low, high) in times.items():
            results.append({"shape": shape.name(), "what": name, "us": median, "p10": low, "p90": high,
                            "tflops": shape.flop / median / 1e6, "error": errors.get(name)})
            error = f"{errors[name]:.1e}" if name in errors else ""
            print(f"{shape.name():24s} {name:16s} {median:9.2f} us [{low:.2f} {high:.2f}] "
                  f"{shape.flop / median / 1e6:7.1f} TFLOP/s {error}", flush=True)
        print(f"  clocks {clock()}", flush=True)
        del runners, graphs, shape
        torch.cuda.empty_cache()
    names = list(dict.fromkeys(r["what"] for r in results))
    table = ["| shape | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for shape in dict.fromkeys(r["shape"] for r in results):
        row = {r["what"]: r for r in results if r["shape"] == shape}
        table.append(f"| {shape} | " + " | ".join(
            f"{row[n]['us']:.1f} us, {row[n]['tflops']:.0f}" if n in row else "-" for n in names) + " |")
    print("\n".join(table))
    if options.out:
        with open(options.out, "w", encoding="utf-8") as f:
            json.dump(results, f, indent=1)


if __name__ == "__main__":
    main()
