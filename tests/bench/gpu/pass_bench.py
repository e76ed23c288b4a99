#!/usr/bin/env python3
"""The whole scoring pass of grab-512 by PyTorch at its best, as a peer of grab_cuda_bench: bf16, both channels and all users in one
batch, SDPA by cuDNN and by flash with the self key merged by log-sum-exp, torch.compile and a CUDA graph. K/V are cached; what
a request changes of them, position and time biases, is added to K inside of the timed region. Users are rotated past the L2.

    pass_bench.py [--shapes 1x1024x256,...] [--repeats 60] [--attention best|both|cudnn|flash]

Each shape compiles in a process of its own, all side by side; they are timed one after the other, when all are ready.
"""
import argparse
import fcntl
import os
import statistics
import subprocess
import sys
import time

SHAPES = "1x1024x256,1x4096x256,1x4096x1024,1x16384x1024,8x4096x256,8x4096x1024,1x65536x1024"
LAYERS, C, H, DH, D, FFN, HIDDEN, POS, TIMES = 4, 2, 4, 128, 512, 1024, 512, 256, 64


def build(torch, users, history, candidates, only):
    F = torch.nn.functional
    aten = torch.ops.aten
    half = lambda *s, scale=0.04: (torch.randn(*s, device="cuda") * scale).bfloat16()
    full = lambda *s: torch.randn(*s, device="cuda") * 0.2
    layers = [dict(qkv=half(C, D, 3 * D), o=half(C, D, D), w1=half(C, D, FFN), w2=half(C, FFN, D), b1=half(C, 1, FFN),
                   b2=half(C, 1, D), g1=1 + full(C, 1, D), s1=full(C, 1, D), g2=1 + full(C, 1, D), s2=full(C, 1, D),
                   gate_w=full(C * D, C), gate_b=full(C), pos=half(C, POS, DH), time=half(C, TIMES, DH),
                   self_b=half(C, 1, 1, 1, DH)) for _ in range(LAYERS)]
    head = dict(w1=half(C * D, HIDDEN), b1=half(HIDDEN), w2=half(HIDDEN, 1), b2=half(1))
    rows = users * candidates

    def cudnn(q, k, v):
        out = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, False, False)
        return out[0], out[1]

    def flash(q, k, v):
        out = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False, False)
        return out[0], out[1]

    def norm(x, g, s):
        return F.layer_norm(x, (D,)) * g + s

    def forward(attention, tokens, keys, values, position, when):
        x = tokens.expand(C, rows, D)
        for l, w in enumerate(layers):
            beta = torch.sigmoid(torch.cat([x[0], x[1]], -1) @ w["gate_w"] + w["gate_b"]).t()[:, :, None]
            x = x + torch.flip(x * beta, (0,))
            qkv = torch.bmm(x.bfloat16(), w["qkv"]).view(C, users, candidates, 3, H, DH)
            q, k, v = (qkv[:, :, :, i].transpose(2, 3) for i in range(3))
            bias = (w["pos"][:, position] + w["time"][:, when])[:, None, None]  # [C, 1, 1, history, DH]
            folded = keys[l] + bias
            flat = lambda t: t.flatten(0, 1)
            o, lse = attention(flat(q), flat(folded), flat(values[l]))
            own = (q * (k + w["self_b"])).float().sum(-1) * DH**-0.5
            share = torch.sigmoid(own - lse.view(own.shape).float())[..., None]
            o = o.view(q.shape) * (1 - share) + v * share
            o = o.transpose(2, 3).reshape(C, rows, D).bfloat16()
            x = norm(x + torch.bmm(o, w["o"]), w["g1"], w["s1"])
            inner = torch.relu(torch.bmm(x.bfloat16(), w["w1"]) + w["b1"])
            x = norm(x + torch.bmm(inner, w["w2"]) + w["b2"], w["g2"], w["s2"])
        both = torch.cat([x[0], x[1]], -1).bfloat16()
        return torch.relu(both @ head["w1"] + head["b1"]) @ head["w2"] + head["b2"]

    megabytes = users * history * C * LAYERS * 4 * D / 1e6
    sets = max(2, int(200 / megabytes))
    shape = (LAYERS, C, users, H, history, DH)
    kv = [(torch.randn(shape, device="cuda", dtype=torch.bfloat16), torch.randn(shape, device="cuda", dtype=torch.bfloat16))
          for _ in range(sets)]
    tokens = torch.randn(1, rows, D, device="cuda")
    age = torch.arange(history, 0, -1, device="cuda")
    position = torch.clamp(age, max=POS - 1)
    when = torch.clamp((torch.log(age.float() * 3600) / 0.301).long(), max=TIMES - 1)
    graphs = {}
    torch.set_float32_matmul_precision("high")
    for name, attention in {"cudnn": cudnn, "flash": flash}.items():
        if only not in ("both", name):
            continue
        compiled = torch.compile(forward, dynamic=False)
        graphs[name] = []
        for keys, values in kv:
            args = (attention, tokens, keys, values, position, when)
            got = compiled(*args)
            if not graphs[name]:
                want = forward(*args)
                off = ((got - want).float().norm() / want.float().norm()).item()
                assert off < 0.05, f"{name}: compiled differs from eager by {off}"
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                compiled(*args)
            graphs[name].append(graph)
    return graphs


def measure(torch, graphs, repeats):
    times = {name: [] for name in graphs}
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for i in range(repeats + 8):
        for name, of_sets in graphs.items():
            torch.cuda.synchronize()
            start.record()
            of_sets[i % len(of_sets)].replay()
            end.record()
            end.synchronize()
            if i >= 8:
                times[name].append(start.elapsed_time(end))
    return {name: statistics.median(t) for name, t in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--attention", choices=("best", "both", "cudnn", "flash"), default="best")
    parser.add_argument("--lock")
    parser.add_argument("--ready", type=int, default=0)
    options = parser.parse_args()
    shapes = options.shapes.split(",")
    if len(shapes) > 1:
        lock = options.lock or f"/tmp/pass_bench.{os.getpid()}"
        children = [subprocess.Popen([sys.executable, __file__, "--shapes", s, "--repeats", str(options.repeats), "--lock", lock,
                                      "--attention", options.attention, "--ready", str(len(shapes))]) for s in shapes]
        sys.exit(max(child.wait() for child in children))
    import torch
    users, history, candidates = map(int, shapes[0].split("x"))
    # Flash attention is the faster one where few rows meet long histories (attend_bench.py).
    only = options.attention if options.attention != "best" else "flash" if users * candidates <= 256 else "cudnn"
    torch.manual_seed(0)
    with torch.no_grad():
        graphs = build(torch, users, history, candidates, only)
        if options.lock:
            open(f"{options.lock}.{shapes[0]}", "w").close()
            directory, base = os.path.split(options.lock)
            deadline = time.time() + 300
            while sum(f.startswith(base + ".") for f in os.listdir(directory)) < options.ready and time.time() < deadline:
                time.sleep(0.1)
            turn = open(options.lock, "a")
            fcntl.flock(turn, fcntl.LOCK_EX)
        result = measure(torch, graphs, options.repeats)
    print(f"{shapes[0]}  PyTorch {torch.__version__} compiled, graphed: " +
          ", ".join(f"{name} {ms:.3f} ms" for name, ms in result.items()), flush=True)


if __name__ == "__main__":
    main()
