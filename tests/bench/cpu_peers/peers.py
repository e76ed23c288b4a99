"""Times GRAB scoring of grab-256 on a CPU: ours, ONNX Runtime fp32, PyTorch fp32 and bf16, interleaved. See README.md."""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

for variable in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(variable, None)
os.environ["GOMP_CPU_AFFINITY"] = f"0-{os.cpu_count() - 1}"  # torch: one thread per processor, as ours places its own

import numpy as np  # noqa: E402

LAYERS, CHANNELS, HEADS, WIDTH, D, FFN, HEAD_HIDDEN = 4, 2, 4, 64, 256, 512, 256
EPS = 1e-5


def make_weights(rng):
    def matrix(k, n):
        return (rng.uniform(-1, 1, (k, n)) * np.sqrt(6 / (k + n))).astype(np.float32)

    layer = lambda: {"wq": matrix(D, D), "wk": matrix(D, D), "wv": matrix(D, D), "wo": matrix(D, D),
                     "w1": matrix(D, FFN), "b1": np.zeros(FFN, np.float32),
                     "w2": matrix(FFN, D), "b2": np.zeros(D, np.float32)}
    return {"layers": [[layer() for _ in range(CHANNELS)] for _ in range(LAYERS)],
            "gates": [{"w": matrix(CHANNELS * D, CHANNELS), "b": np.full(CHANNELS, -2, np.float32)}
                      for _ in range(LAYERS)],
            "head": {"w1": matrix(CHANNELS * D, HEAD_HIDDEN), "b1": np.zeros(HEAD_HIDDEN, np.float32),
                     "w2": matrix(HEAD_HIDDEN, 1), "b2": np.zeros(1, np.float32)}}


def make_user(rng, rows):
    """K and V [layer][channel], each [heads, rows, width]."""
    shape = (LAYERS, CHANNELS, HEADS, rows, WIDTH)
    return {"k": rng.standard_normal(shape, np.float32), "v": rng.standard_normal(shape, np.float32)}


def exact(weights, user, x):
    """The graph in float64: what every contender is held against."""
    def norm(y):
        return (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + EPS)

    def heads(y):
        return y.reshape(len(y), HEADS, WIDTH).transpose(1, 0, 2)

    f = lambda a: a.astype(np.float64)
    xs = [f(x)] * CHANNELS
    for layer in range(LAYERS):
        gate = weights["gates"][layer]
        beta = 1 / (1 + np.exp(-(np.concatenate(xs, -1) @ f(gate["w"]) + f(gate["b"]))))
        xs = [xs[c] + sum(beta[:, [s]] * xs[s] for s in range(CHANNELS) if s != c) for c in range(CHANNELS)]
        for c in range(CHANNELS):
            w, y = weights["layers"][layer][c], xs[c]
            q, k, v = (heads(y @ f(w[n])) for n in ("wq", "wk", "wv"))
            s = q @ f(user["k"][layer, c]).transpose(0, 2, 1) / 8
            s = np.concatenate([s, (q * k).sum(-1, keepdims=True) / 8], -1)
            p = np.exp(s - s.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            o = p[..., :-1] @ f(user["v"][layer, c]) + p[..., -1:] * v
            y = norm(y + o.transpose(1, 0, 2).reshape(len(y), D) @ f(w["wo"]))
            xs[c] = norm(y + np.maximum(y @ f(w["w1"]) + f(w["b1"]), 0) @ f(w["w2"]) + f(w["b2"]))
    head = weights["head"]
    hidden = np.maximum(np.concatenate(xs, -1) @ f(head["w1"]) + f(head["b1"]), 0)
    return hidden @ f(head["w2"]) + f(head["b2"])


def ort_contender(weights, users, x, threads):
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants, inputs, count = [], [], [], [0]

    def name(hint):
        count[0] += 1
        return f"{hint}{count[0]}"

    def constant(value):
        n = name("const")
        constants.append(numpy_helper.from_array(np.asarray(value), n))
        return n

    def op(kind, *args, **attributes):
        out = name(kind)
        nodes.append(helper.make_node(kind, list(args), [out], **attributes))
        return out

    rows = x.shape[0]
    ones, zeros = constant(np.ones(D, np.float32)), constant(np.zeros(D, np.float32))
    split_heads = constant(np.array([rows, HEADS, WIDTH], np.int64))
    join_heads = constant(np.array([rows, D], np.int64))
    last = constant(np.array([-1], np.int64))
    scale = np.float32(1 / 8)

    def heads(y):
        return op("Transpose", op("Reshape", y, split_heads), perm=[1, 0, 2])

    def norm(y):
        return op("LayerNormalization", y, ones, zeros, axis=-1, epsilon=EPS)

    xs = ["x"] * CHANNELS
    for layer in range(LAYERS):
        gate = weights["gates"][layer]
        joined = op("Concat", *xs, axis=-1)
        beta = op("Sigmoid", op("Gemm", joined, constant(gate["w"]), constant(gate["b"])))
        columns = [op("Slice", beta, constant(np.array([c])), constant(np.array([c + 1])), constant(np.array([1])))
                   for c in range(CHANNELS)]
        mixed = []
        for c in range(CHANNELS):
            y = xs[c]
            for s in range(CHANNELS):
                if s != c:
                    y = op("Add", y, op("Mul", columns[s], xs[s]))
            mixed.append(y)
        for c in range(CHANNELS):
            w, y = weights["layers"][layer][c], mixed[c]
            history = users[0]["k"].shape[3]
            k_name, v_name = f"k{layer}_{c}", f"v{layer}_{c}"
            inputs.append(helper.make_tensor_value_info(k_name, TensorProto.FLOAT, [HEADS, WIDTH, history]))
            inputs.append(helper.make_tensor_value_info(v_name, TensorProto.FLOAT, [HEADS, history, WIDTH]))
            q = heads(op("MatMul", y, constant(w["wq"] * scale)))  # the scale costs nothing
            k, v = (heads(op("MatMul", y, constant(w[n]))) for n in ("wk", "wv"))
            own = op("ReduceSum", op("Mul", q, k), last, keepdims=1)
            p = op("Softmax", op("Concat", op("MatMul", q, k_name), own, axis=-1), axis=-1)
            from_history = op("Slice", p, constant(np.array([0])), constant(np.array([history])),
                              constant(np.array([2])))
            from_self = op("Slice", p, constant(np.array([history])), constant(np.array([history + 1])),
                           constant(np.array([2])))
            o = op("Add", op("MatMul", from_history, v_name), op("Mul", from_self, v))
            o = op("Reshape", op("Transpose", o, perm=[1, 0, 2]), join_heads)
            y = norm(op("Add", y, op("MatMul", o, constant(w["wo"]))))
            hidden = op("Relu", op("Gemm", y, constant(w["w1"]), constant(w["b1"])))
            xs[c] = norm(op("Add", y, op("Gemm", hidden, constant(w["w2"]), constant(w["b2"]))))
        xs = list(xs)
    head = weights["head"]
    hidden = op("Relu", op("Gemm", op("Concat", *xs, axis=-1), constant(head["w1"]), constant(head["b1"])))
    logits = op("Gemm", hidden, constant(head["w2"]), constant(head["b2"]))
    inputs.insert(0, helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, D]))
    graph = helper.make_graph(nodes, "grab", inputs,
                              [helper.make_tensor_value_info(logits, TensorProto.FLOAT, [rows, 1])], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    if threads > 1:
        options.add_session_config_entry("session.intra_op_thread_affinities",
                                         ";".join(str(2 + i) for i in range(threads - 1)))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = []
    for user in users:
        feed = {"x": x}
        for layer in range(LAYERS):
            for c in range(CHANNELS):
                feed[f"k{layer}_{c}"] = np.ascontiguousarray(user["k"][layer, c].transpose(0, 2, 1))
                feed[f"v{layer}_{c}"] = user["v"][layer, c]
        # Bound once: no copy of the inputs is timed.
        binding = session.io_binding()
        for key, value in feed.items():
            binding.bind_cpu_input(key, value)
        binding.bind_output(logits)
        feeds.append(binding)

    def run(user):
        session.run_with_iobinding(feeds[user])
        return feeds[user].copy_outputs_to_cpu()[0]

    return {f"ort {onnxruntime.__version__} fp32": run}


def torch_contenders(weights, users, x, threads):
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(threads)
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def attend_fused(q, k_self, v_self, k, v, k_t):
        out, lse = flash(q[None], k[None], v[None])
        own = (q * k_self).sum(-1).float() / 8
        weight = torch.sigmoid(own - lse[0].float())[..., None].to(q.dtype)
        return out[0] + weight * (v_self - out[0])

    def attend_unfused(q, k_self, v_self, k, v, k_t):
        own = (q * k_self).sum(-1, keepdim=True)
        p = torch.softmax(torch.cat([q @ k_t, own], -1) / 8, -1)
        return p[..., :-1] @ v + p[..., -1:] * v_self

    def forward(attend, w, x, k, v, k_t):
        xs = [x] * CHANNELS
        for layer in range(LAYERS):
            gate = w["gates"][layer]
            beta = torch.sigmoid(torch.addmm(gate["b"], torch.cat(xs, -1), gate["w"]))
            xs = [xs[c] + sum(beta[:, s:s + 1] * xs[s] for s in range(CHANNELS) if s != c) for c in range(CHANNELS)]
            for c in range(CHANNELS):
                l, y = w["layers"][layer][c], xs[c]
                qkv = (y @ l["wqkv"]).view(-1, 3, HEADS, WIDTH)
                q, k_self, v_self = (qkv[:, i].transpose(0, 1) for i in range(3))
                o = attend(q, k_self, v_self, k[layer, c], v[layer, c], k_t[layer, c])
                y = F.layer_norm(y + o.transpose(0, 1).reshape(-1, D) @ l["wo"], (D,), eps=EPS)
                hidden = torch.relu(torch.addmm(l["b1"], y, l["w1"]))
                xs[c] = F.layer_norm(y + torch.addmm(l["b2"], hidden, l["w2"]), (D,), eps=EPS)
        head = w["head"]
        hidden = torch.relu(torch.addmm(head["b1"], torch.cat(xs, -1), head["w1"]))
        return torch.addmm(head["b2"], hidden, head["w2"])

    def cast(tree, dtype):
        if isinstance(tree, dict):
            out = {key: cast(value, dtype) for key, value in tree.items()}
            if "wq" in out:
                out["wqkv"] = torch.cat([out["wq"], out["wk"], out["wv"]], -1)
            return out
        if isinstance(tree, list):
            return [cast(value, dtype) for value in tree]
        return torch.from_numpy(tree).to(dtype)

    contenders = {}
    for dtype, label in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
        w, rows = cast(weights, dtype), torch.from_numpy(x).to(dtype)
        state = []
        for user in users:
            k, v = (torch.from_numpy(user[n]).to(dtype) for n in ("k", "v"))
            state.append((k, v, k.transpose(-1, -2).contiguous()))
        for attend, how in ((attend_fused, "fused"), (attend_unfused, "unfused")):
            modes = {"eager": None}
            if label == "bf16":
                modes["compiled"] = {}
                if how == "fused":
                    modes["autotuned"] = {"mode": "max-autotune"}
            for mode, options in modes.items():
                fn = lambda *args, attend=attend: forward(attend, *args)
                if options is not None:
                    fn = torch.compile(fn, dynamic=False, **options)

                def run(user, fn=fn, w=w, rows=rows, state=state):
                    with torch.inference_mode():
                        return fn(w, rows, *state[user]).float().numpy()

                contenders[f"torch {torch.__version__} {label} {how} {mode}"] = run
    return contenders


def ours(binary, history, candidates, threads):
    """One process; the median over its calls of each precision, in ms."""
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_CPU_AFFINITY"}
    done = subprocess.run([binary, "bench", "model", "--model", "grab-256", "--what", "score", "--history", str(history),
                           "--candidates", str(candidates), "--threads", str(threads), "--seconds", "0.3", "--json"],
                          check=True, capture_output=True, text=True, env=environment,
                          preexec_fn=lambda: os.sched_setaffinity(0, range(os.cpu_count())))
    report = json.loads(done.stdout)
    return {f"ours {entry['precision']}": entry["median_ms"] for entry in report["results"]}, report


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ours", required=True, help="path of the backstory binary")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--candidates", type=int, default=256)
    parser.add_argument("--history", type=int, nargs="*", default=[1024, 4096])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[""], help="substrings of the peers to run")
    args = parser.parse_args()
    for history in args.history:
        rng = np.random.default_rng(1)
        weights = make_weights(rng)
        users = [make_user(rng, history) for _ in range(6 if history < 4096 else 3)]
        x = rng.standard_normal((args.candidates, D), np.float32)
        contenders = dict(ort_contender(weights, users, x, args.threads))
        contenders.update(torch_contenders(weights, users, x, args.threads))
        contenders = {n: run for n, run in contenders.items() if any(o in n for o in args.only)}
        want = exact(weights, users[0], x)
        error = {}
        for name, run in contenders.items():
            for _ in range(3):  # compiles, tunes, warms up
                got = run(0)
            error[name] = float(np.abs(got - want).max())
        times = {name: [] for name in contenders}
        for turn in range(args.rounds):
            mine, context = ours(args.ours, history, args.candidates, args.threads)
            for name, ms in mine.items():
                times.setdefault(name, []).append(ms)
            for name, run in contenders.items():
                for i in range(3):
                    start = time.perf_counter()
                    run((3 * turn + i) % len(users))
                    times[name].append((time.perf_counter() - start) * 1e3)
        print(f"1 x {history} x {args.candidates}, {args.threads} threads, {args.rounds} rounds, {context['machine']}, "
              f"target {context['kernel_target']}; |logit| <= {np.abs(want).max():.2f}")
        for name in sorted(times, key=lambda n: statistics.median(times[n])):
            note = f"  largest error {error[name]:.2g}" if name in error else ""
            print(f"  {statistics.median(times[name]):8.1f} ms  (min {min(times[name]):.1f})  {name}{note}")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
