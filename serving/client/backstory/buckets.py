"""Which bucket is a unit in? The hash of experiment assignment (hash version 1), for clients that assign by themselves.

bucket = XXH3-64(unit, seed) mod 10,000 with seed = XXH3-64(salt, 0), both over UTF-8 bytes. Pure Python, from the
xxHash specification; about 10 microseconds a call. tests/conformance/experiments/buckets.json holds the golden vectors.
"""
import struct

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


def seed_of(salt: str) -> int:
    return xxh3_64(salt.encode())


def bucket(salt: str, unit: str) -> int:
    """0..9,999: the bucket of `unit` (a user, device or session id) under the salt of a layer or experiment."""
    return xxh3_64(unit.encode(), seed_of(salt)) % BUCKETS
