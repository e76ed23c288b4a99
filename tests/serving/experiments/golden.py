#!/usr/bin/env python3
"""Golden vectors of experiment assignment, computed with the Python client's hash: no C++ of ours, no library for XXH3.

  golden.py            checks tests/conformance/experiments/*.json (exit code 1 on the first difference)
  golden.py --write    writes them

buckets.json: salt, unit -> seed, bucket. arms.json: a layer and its experiments -> what each unit gets. Any client that
assigns units itself must reproduce both; the engine does in golden_test.cc.
"""
import importlib.util
import json
import os
import random
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..", "..", "..")
DATA = os.path.join(ROOT, "tests", "conformance", "experiments")


def client_module(name):
    """A module of the Python client by itself: the package as a whole needs gRPC and a built wheel."""
    path = os.path.join(ROOT, "serving", "client", "backstory", name + ".py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


buckets = client_module("buckets")
bucket, seed_of, xxh3_64 = buckets.bucket, buckets.seed_of, buckets.xxh3_64


def exposed(experiment):
    listed = [b for first, count in experiment["buckets"] for b in range(first, first + count)]
    return set(listed[:experiment["ramp"]])


def assign(layer, unit):
    """Experiment and arm of a unit, or nulls."""
    at = bucket(layer["salt"], unit)
    for experiment in layer["experiments"]:
        if at in exposed(experiment):
            arm_bucket, end = bucket(experiment["salt"], unit), 0
            for arm, weight in experiment["arms"]:
                end += weight
                if arm_bucket < end:
                    return {"unit": unit, "bucket": at, "experiment": experiment["name"], "arm": arm}
    return {"unit": unit, "bucket": at, "experiment": None, "arm": None}


def bucket_vectors():
    rng = random.Random(20)
    salts = ["", "a", "layer/ranking", "holdout", "größe", "s" * 128]
    units = ["", "1", "42", "ann", "user-7", "12345678", "a-16-byte-unit-i", "a-17-byte-unit-id", "用户", "🙂"]
    # Every branch of the hash: 1-3, 4-8, 9-16, 17-128, 129-240 and 241-256 bytes.
    units += ["".join(rng.choice("abcdefghijklmnop0123456789-") for _ in range(n))
              for n in list(range(1, 34)) + [64, 65, 96, 97, 127, 128, 129, 130, 192, 239, 240, 241, 242, 255, 256]]
    return [{"salt": s, "unit": u, "seed": f"{seed_of(s):016x}", "bucket": bucket(s, u)} for s in salts for u in units]


LAYER = {
    "name": "ranking", "salt": "ranking-1",
    "experiments": [
        {"name": "longer", "salt": "experiment/longer", "buckets": [[0, 3000], [9000, 500]], "ramp": 3200,
         "arms": [["control", 5000], ["treatment", 5000]]},
        {"name": "blended", "salt": "blend-2", "buckets": [[4000, 4000]], "ramp": 4000,
         "arms": [["low", 1], ["mid", 3333], ["high", 6666]]},
    ],
}


def vectors():
    units = [f"user-{n}" for n in range(400)] + [str(n) for n in range(100)]
    return {"buckets.json": {"hash_version": 1, "vectors": bucket_vectors()},
            "arms.json": {"hash_version": 1, "layer": LAYER, "vectors": [assign(LAYER, u) for u in units]}}


def main():
    # Known values of the hash itself, from the xxHash project's own sanity table (input: none).
    assert xxh3_64(b"") == 0x2D06800538D394C2, "XXH3-64 of nothing"
    for name, expected in vectors().items():
        path = os.path.join(DATA, name)
        if "--write" in sys.argv[1:]:
            with open(path, "w", encoding="utf-8") as f:
                json.dump(expected, f, ensure_ascii=False, indent=0)
                f.write("\n")
            continue
        with open(path, encoding="utf-8") as f:
            stored = json.load(f)
        if stored != expected:
            sys.exit(f"{path}: differs from what this program computes")
        print(f"{name}: {len(expected['vectors'])} vectors reproduced")


if __name__ == "__main__":
    main()
