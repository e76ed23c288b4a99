#!/usr/bin/env python3
"""The rules of the house that a compiler does not check.

Dependencies point one way (ARCHITECTURE.md), files stay under their size bar unless their first lines say why, and every
CMake test source exists. Prints each finding as path:line: reason; exit code 1 if there is one.
"""
import os
import re
import subprocess
import sys

PROTO = ("backstory/v1", "grpcpp", "grpc/", "google/protobuf")
# room -> include prefixes it must never see
NEVER = {
    "kernels": ("features/", "store/", "models/", "serving/", "rocksdb/", "backstory/") + PROTO,
    "features": ("store/", "models/", "serving/", "kernels/", "rocksdb/", "backstory/") + PROTO,
    "store": ("models/", "serving/", "kernels/", "backstory/") + PROTO,
    "models": ("store/", "serving/", "rocksdb/", "backstory/v1", "grpcpp", "grpc/"),
    "serving/engine": ("serving/rpc/", "serving/cli/", "serving/console/", "rocksdb/") + PROTO,
    "serving/embedded": ("serving/rpc/", "serving/cli/", "serving/console/", "rocksdb/") + PROTO,
    "serving/python": ("serving/rpc/", "serving/cli/", "serving/console/", "rocksdb/") + PROTO,
    "serving/rpc": ("serving/cli/", "rocksdb/"),
}
INCLUDE = re.compile(r'\s*#\s*include\s*[<"]([^>"]+)')
BAR = {".h": 200, ".cuh": 200, ".cc": 500, ".cu": 500, ".py": 500}
TEST_BAR = 600


def room_of(path):
    for room in sorted(NEVER, key=len, reverse=True):
        if path.startswith(room + "/"):
            return room
    return None


def findings(path):
    room, suffix = room_of(path), os.path.splitext(path)[1]
    with open(path, encoding="utf-8", errors="replace") as f:
        lines = f.read().splitlines()
    if room and suffix in (".h", ".cc", ".cu", ".cuh"):
        for number, line in enumerate(lines, 1):
            match = INCLUDE.match(line)
            if match and match.group(1).startswith(NEVER[room]):
                yield number, f"{room} must not include {match.group(1)}"
            if match and suffix == ".h" and match.group(1).startswith("cuda"):
                yield number, "no CUDA header in a .h: use .cuh"
    bar = TEST_BAR if path.startswith("tests/") else BAR.get(suffix)
    if suffix in BAR and len(lines) > bar and not any("size bar" in line for line in lines[:20]):
        yield len(lines), f"{len(lines)} lines, over the size bar of {bar} without a reason in its first lines"


def main():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, check=True)
    count = 0
    for path in filter(os.path.isfile, listed.stdout.splitlines()):
        for number, reason in findings(path):
            print(f"{path}:{number}: {reason}")
            count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
