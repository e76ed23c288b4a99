"""GLASS at the released size on a CPU: ours beside its PyTorch twin, in one run, alternating.

    /usr/bin/python3 -m tests.bench.cpu_peers.glass_peer [--bench build/release/bin/glass_bench] [--rounds 5]

The twin runs as a careful user of PyTorch would: inference mode, one thread or one per processor, whichever is faster here, K/V of earlier positions cached, K/V of the
memory computed once and shared by all beams, K/V tables of retrieved tokens made at load, retrieved sets as distinct tokens
with counts or as counts over the vocabulary, whichever is faster here. Ours: Network::Encode and Search of glass_bench, two
threads. d 96, 6 heads x 32, FFN 1024, 4 + 4 layers, levels [64, 128, 128], 151 slots, beam 20, history 1,000, fp32.
"""
import argparse
import collections
import json
import os
import statistics
import subprocess
import time

for variable in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(variable, None)
os.environ["GOMP_CPU_AFFINITY"] = f"0-{os.cpu_count() - 1}"

import numpy as np  # noqa: E402
import torch  # noqa: E402

from models.training.glass import config as glass_config  # noqa: E402
from models.training.glass import decode, history, twin  # noqa: E402


class Peer:
    def __init__(self):
        r = np.random.default_rng(1)
        self.config = glass_config.make("COMPAT")
        codes = np.stack([r.integers(0, size, 10_000) for size in self.config.levels], 1)
        embedding = r.normal(size=(10_000, self.config.embedding_width)).astype(np.float32) * 0.1
        self.catalogue = history.Catalogue(self.config, codes, embedding)
        self.user = history.recount(self.catalogue, list(r.integers(0, 10_000, 1_000)))
        self.model = twin.Glass(self.config, seed=1, std=0.3).eval()
        self.trie = decode.Trie(codes, self.config.levels)
        tables = self.model.retrieved_tables()
        self.model.retrieved_tables = lambda: tables  # constants of the weights
        self.short = torch.from_numpy(self.user.short_tokens()).unsqueeze(0)
        self.features = torch.from_numpy(self.user.tier_features()).unsqueeze(0)
        self.retrieve = {"counts": decode.retrieve_from(self.user), "tokens": decode.retrieve_from(self.user, spelled=True)}

    def encode(self):
        return self.model.encode(self.short, self.features)

    def search(self, kind, encoded=None):
        return decode.search(self.model, self.short, self.features, self.retrieve[kind], 20, "valid", self.trie, encoded)


def milliseconds(call, least=8, seconds=1.0):
    """Median of calls."""
    times, end = [], time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def ours(bench):
    done = subprocess.run([bench, "--benchmark_filter=BM_Encode/2/|BM_Decode/20/2/", "--benchmark_format=json",
                           "--benchmark_min_time=0.5"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True,
                          preexec_fn=lambda: os.sched_setaffinity(0, range(os.cpu_count())))  # torch pins its own thread
    report = json.loads(done.stdout[done.stdout.index("{"):])
    return [row["real_time"] / 1e3 for row in report["benchmarks"]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", default="build/release/bin/glass_bench")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    peer = Peer()
    rows = collections.defaultdict(list)
    with torch.inference_mode():
        encoded = peer.encode()
        for _ in range(arguments.rounds):
            encode_ms, decode_ms = ours(arguments.bench)
            rows["ours encode"].append(encode_ms)
            rows["ours decode"].append(decode_ms)
            for threads in sorted({1, os.cpu_count()}):
                torch.set_num_threads(threads)
                rows[f"torch encode, {threads} threads"].append(milliseconds(peer.encode))
                for kind in peer.retrieve:
                    rows[f"torch decode, {threads} threads, {kind}"].append(
                        milliseconds(lambda kind=kind: peer.search(kind, encoded)))
    print(f"torch {torch.__version__}; medians of {arguments.rounds} alternating rounds, ms")
    median = {name: statistics.median(values) for name, values in rows.items()}
    for name, values in rows.items():
        print(f"{name:32} {median[name]:8.2f}   ({min(values):.2f} .. {max(values):.2f})")
    encode, decode_ = (min(value for name, value in median.items() if name.startswith(f"torch {part}"))
                       for part in ("encode", "decode"))
    mine = median["ours encode"] + median["ours decode"]
    print(f"encode + decode: ours {mine:.2f}, torch at its best {encode + decode_:.2f}: {(encode + decode_) / mine:.2f}x; "
          f"decode alone {decode_ / median['ours decode']:.2f}x, encode alone {encode / median['ours encode']:.2f}x")


if __name__ == "__main__":
    main()
