#!/usr/bin/env python3
"""Golden vectors of experiment assignment, computed without any of our C++ and without a library for XXH3.

  golden.py            checks tests/conformance/experiments/*.json (exit code 1 on the first difference)
  golden.py --write    writes them

buckets.json: salt, unit -> seed, bucket. arms.json: a layer and its experiments -> what each unit gets. Any client that
assigns units itself must reproduce both.
"""
import json
import os
import random
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = os.path.join(HERE, "..", "..", "conformance", "experiments")
BUCKETS = 10_000

MASK = (1 << 64) - 1
P32 = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
P64 = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
# The 192 bytes every XXH3 starts from (xxHash specification, "kSecret").
SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
    "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
    "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e")


def r32(b, i):
    return struct.unpack_from("<I", b, i)[0]


def r64(b, i):
    return struct.unpack_from("<Q", b, i)[0]


def swap64(x):
    return int.from_bytes(x.to_bytes(8, "little"), "big")


def fold(a, b):
    p = a * b
    return (p ^ (p >> 64)) & MASK


def avalanche(h):
    h ^= h >> 37
    h = h * 0x165667919E3779F9 & MASK
    return h ^ (h >> 32)


def avalanche64(h):
    h ^= h >> 33
    h = h * P64[1] & MASK
    h ^= h >> 29
    h = h * P64[2] & MASK
    return h ^ (h >> 32)


def rotl(x, n):
    return (x << n | x >> (64 - n)) & MASK


def short(b, seed):
    n = len(b)
    if n == 0:
        return avalanche64(seed ^ r64(SECRET, 56) ^ r64(SECRET, 64))
    if n <= 3:
        combined = b[0] << 16 | b[n >> 1] << 24 | b[n - 1] | n << 8
        flip = (r32(SECRET, 0) ^ r32(SECRET, 4)) + seed & MASK
        return avalanche64(combined ^ flip)
    if n <= 8:
        low = seed & 0xFFFFFFFF
        seed ^= int.from_bytes(low.to_bytes(4, "little"), "big") << 32
        flip = (r64(SECRET, 8) ^ r64(SECRET, 16)) - seed & MASK
        h = (r32(b, n - 4) + (r32(b, 0) << 32)) ^ flip
        h ^= rotl(h, 49) ^ rotl(h, 24)
        h = h * 0x9FB21C651E98DF25 & MASK
        h ^= (h >> 35) + n
        h = h * 0x9FB21C651E98DF25 & MASK
        return h ^ (h >> 28)
    low = r64(b, 0) ^ ((r64(SECRET, 24) ^ r64(SECRET, 32)) + seed & MASK)
    high = r64(b, n - 8) ^ ((r64(SECRET, 40) ^ r64(SECRET, 48)) - seed & MASK)
    return avalanche(n + swap64(low) + high + fold(low, high) & MASK)


def mix16(b, i, s, seed):
    return fold(r64(b, i) ^ (r64(SECRET, s) + seed & MASK), r64(b, i + 8) ^ (r64(SECRET, s + 8) - seed & MASK))


def middle(b, seed):
    n = len(b)
    acc = n * P64[0]
    if n <= 128:
        for i in range((n - 1) // 32, -1, -1):
            acc += mix16(b, 16 * i, 32 * i, seed) + mix16(b, n - 16 * (i + 1), 32 * i + 16, seed)
        return avalanche(acc & MASK)
    for i in range(8):
        acc += mix16(b, 16 * i, 16 * i, seed)
    acc = avalanche(acc & MASK)
    for i in range(8, n // 16):
        acc += mix16(b, 16 * i, 16 * (i - 8) + 3, seed)
    return avalanche(acc + mix16(b, n - 16, 136 - 17, seed) & MASK)


def long(b, seed):
    n = len(b)
    secret = b"".join(struct.pack("<QQ", r64(SECRET, 16 * i) + seed & MASK, r64(SECRET, 16 * i + 8) - seed & MASK)
                      for i in range(12))
    acc = [P32[2], P64[0], P64[1], P64[2], P64[3], P32[1], P64[4], P32[0]]

    def stripe(at, s):
        for i in range(8):
            value = r64(b, at + 8 * i)
            key = value ^ r64(secret, s + 8 * i)
            acc[i ^ 1] = acc[i ^ 1] + value & MASK
            acc[i] = acc[i] + (key & 0xFFFFFFFF) * (key >> 32) & MASK

    blocks = (n - 1) // 1024
    for block in range(blocks):
        for i in range(16):
            stripe(1024 * block + 64 * i, 8 * i)
        for i in range(8):
            acc[i] = (acc[i] ^ acc[i] >> 47 ^ r64(secret, 128 + 8 * i)) * P32[0] & MASK
    for i in range((n - 1 - 1024 * blocks) // 64):
        stripe(1024 * blocks + 64 * i, 8 * i)
    stripe(n - 64, 192 - 64 - 7)
    h = n * P64[0] & MASK
    for i in range(4):
        h += fold(acc[2 * i] ^ r64(secret, 11 + 16 * i), acc[2 * i + 1] ^ r64(secret, 19 + 16 * i))
    return avalanche(h & MASK)


def xxh3_64(data, seed=0):
    return short(data, seed) if len(data) <= 16 else middle(data, seed) if len(data) <= 240 else long(data, seed)


def seed_of(salt):
    return xxh3_64(salt.encode())


def bucket(salt, unit):
    return xxh3_64(unit.encode(), seed_of(salt)) % BUCKETS


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
