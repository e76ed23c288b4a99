#!/usr/bin/env python3
"""Times the kernels around attention (kernels/cuda/layer.h) beside cuBLASLt's through PyTorch, in CUDA graphs, interleaved.

Widths of grab-512: d 512, 4 heads x 128, FFN 1,024, 64 bias segments a head. A graph runs --layers layers' weights one after
the other, so that they come from the L2 or beyond as in a model; a time is the graph's over its layers, the median.

    layer_bench.py --lib PATH [--rows 64,256,...] [--channels 2]
"""
import argparse
import ctypes
import statistics

import torch
import torch.nn.functional as F

P = ctypes.c_void_p
I = ctypes.c_int


class ProjectArgs(ctypes.Structure):
    _fields_ = [(n, I) for n in ("rows", "channels", "d_in", "out", "bias_out")] + [
        (n, P) for n in ("z", "w", "b", "w_bias", "y", "bias")] + [("overlap", ctypes.c_bool)]


class FinishArgs(ctypes.Structure):
    _fields_ = [(n, I) for n in ("rows", "channels", "d", "wide", "ffn")] + [
        (n, P) for n in ("attended", "w_o", "w_1", "w_2", "b_1", "b_2", "n1_g", "n1_b", "n2_g", "n2_b", "gate_w", "gate_b", "x",
                         "z", "inner", "concat")] + [("overlap", ctypes.c_bool)]


D, FFN, OUT, BIAS = 512, 1024, 1536, 256


class Layer:
    def __init__(self, rows, channels):
        half = lambda *s: (torch.randn(*s, device="cuda") * (0.04 if len(s) > 2 else 0.3)).bfloat16()
        full = lambda *s: torch.randn(*s, device="cuda") * 0.2
        c = channels
        self.rows, self.channels = rows, channels
        self.w, self.b, self.w_bias = half(c, OUT, D), half(c, OUT), half(c, BIAS, D)
        self.w_o, self.w_1, self.w_2, self.b_1 = half(c, D, D), half(c, FFN, D), half(c, D, FFN), half(c, FFN)
        self.b_2, self.n1_b, self.n2_b = full(c, D), full(c, D), full(c, D)
        self.n1_g, self.n2_g = 1 + full(c, D), 1 + full(c, D)
        self.gate_w, self.gate_b = full(c, c, D), full(c)
        self.inner = torch.empty(c, rows, FFN, device="cuda", dtype=torch.bfloat16)
        # A layer's own, since x is read while the launch before is not over.
        self.x, self.z = torch.randn(c, rows, D, device="cuda"), torch.empty(c, rows, D, device="cuda", dtype=torch.bfloat16)
        self.attended = torch.randn(c, rows, D, device="cuda").bfloat16()

    def project_args(self, z, y, bias, overlap):
        p = lambda t: t.data_ptr()
        return ProjectArgs(self.rows, self.channels, D, OUT, BIAS, p(z), p(self.w), p(self.b), p(self.w_bias), p(y), p(bias), overlap)

    def finish_args(self, x, z, overlap):
        p = lambda t: t.data_ptr()
        return FinishArgs(self.rows, self.channels, D, D, FFN, p(self.attended), p(self.w_o), p(self.w_1), p(self.w_2), p(self.b_1),
                          p(self.b_2), p(self.n1_g), p(self.n1_b), p(self.n2_g), p(self.n2_b), p(self.gate_w), p(self.gate_b), p(x),
                          p(z), p(self.inner), None, overlap)


def torch_project(l, z):
    y = torch.baddbmm(l.b[:, None], z, l.w.transpose(1, 2))
    return y, torch.bmm(l.w_bias, z.transpose(1, 2), out_dtype=torch.float32)


def torch_finish(l, x):
    v = x + torch.bmm(l.attended, l.w_o.transpose(1, 2)).float()
    v = F.layer_norm(v, (D,)) * l.n1_g[:, None] + l.n1_b[:, None]
    h = torch.relu(torch.baddbmm(l.b_1[:, None], v.bfloat16(), l.w_1.transpose(1, 2)))
    v = v + torch.bmm(h, l.w_2.transpose(1, 2)).float() + l.b_2[:, None]
    v = F.layer_norm(v, (D,)) * l.n2_g[:, None] + l.n2_b[:, None]
    if l.channels == 2:
        gate = torch.sigmoid(torch.einsum("frd,fgd->rg", v, l.gate_w) + l.gate_b)
        v = v + torch.flip(v * gate.t()[:, :, None], (0,))
    return v, v.bfloat16()


def graph_of(steps):
    for step in steps:
        step()
    torch.cuda.synchronize()
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.graph(graph, stream=stream):
        for step in steps:
            step()
    return graph


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lib", required=True)
    parser.add_argument("--rows", default="64,128,256,512,1024,2048")
    parser.add_argument("--channels", type=int, default=2)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    lib = ctypes.CDLL(options.lib)
    lib.bench_project.restype = lib.bench_finish.restype = ctypes.c_char_p
    lib.bench_project_bytes.restype = lib.bench_finish_bytes.restype = ctypes.c_size_t
    assert lib.bench_project_bytes() == ctypes.sizeof(ProjectArgs) and lib.bench_finish_bytes() == ctypes.sizeof(FinishArgs)
    print(torch.cuda.get_device_name(), torch.__version__)

    def launch(function, args):
        error = function(ctypes.byref(args), P(torch.cuda.current_stream().cuda_stream))
        assert error is None, error

    compiled = (lambda f: f) if options.no_compile else torch.compile
    peers = {"project": compiled(torch_project), "finish": compiled(torch_finish)}
    for rows in map(int, options.rows.split(",")):
        layers = [Layer(rows, options.channels) for _ in range(options.layers)]
        c = options.channels
        z = torch.randn(c, rows, D, device="cuda").bfloat16()
        x = torch.randn(c, rows, D, device="cuda")
        y = torch.empty(c, rows, OUT, device="cuda", dtype=torch.bfloat16)
        bias = torch.empty(c, BIAS, rows, device="cuda")
        ours_x, ours_z = x.clone(), z.clone()
        launch(lib.bench_project, layers[0].project_args(z, y, bias, False))
        launch(lib.bench_finish, layers[0].finish_args(ours_x, ours_z, False))
        want_y, want_bias = torch_project(layers[0], z)
        want_x, _ = torch_finish(layers[0], x)
        off = lambda got, want: ((got.double() - want.double()).norm() / want.double().norm()).item()
        print(f"rows {rows}: distance to torch: y {off(y, want_y):.1e}, bias {off(bias, want_bias):.1e}, x {off(ours_x, want_x):.1e}")
        graphs = {}
        for overlap in (False, True):
            mark = "+pdl" if overlap else ""
            project = [lambda l=l: launch(lib.bench_project, l.project_args(z, y, bias, overlap)) for l in layers]
            finish = [lambda l=l: launch(lib.bench_finish, l.finish_args(l.x, l.z, overlap)) for l in layers]
            graphs[f"ours project{mark}"], graphs[f"ours finish{mark}"] = graph_of(project), graph_of(finish)
        graphs["torch project"] = graph_of([lambda l=l: peers["project"](l, z) for l in layers])
        graphs["torch finish"] = graph_of([lambda l=l: peers["finish"](l, x) for l in layers])
        times = {name: [] for name in graphs}
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        for i in range(options.repeats + 5):
            for name, graph in graphs.items():
                graph.replay()
                start.record()
                graph.replay()
                end.record()
                end.synchronize()
                if i >= 5:
                    times[name].append(start.elapsed_time(end) * 1000 / len(layers))
        print("  " + ", ".join(f"{name} {statistics.median(t):.2f} us" for name, t in times.items()), flush=True)


if __name__ == "__main__":
    main()
