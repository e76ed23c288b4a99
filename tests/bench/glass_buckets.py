"""What GLASS's hard search can find at all: for how many test targets the bucket of their first code holds the target itself,
or an item of the same first two codes, and for how many the short window does, which every variant reads.

    python3 -m models.training.glass.prepare movielens --source deploy/data/ml-latest-small --out DATA
    python3 -m tests.bench.glass_buckets --data DATA --version models/zoo/glass-ml/1

Codes, window and bucket size are the version's. Every item of a moment of the test part is a target; its history is what
lies before that moment. The shares in models/zoo/glass-ml/1/CARD.md ("Why search cannot help much") are this command's.
"""
import argparse
import json
import os

import numpy as np

from models.training import tensor_file
from models.training.glass import config, prepare


def shares(log, sid, short_items, retrieved_items):
    """log: tensors of log.safetensors; sid int [items, 3]. Shares are of all test targets that have a history."""
    offsets, item, time_us, split = (log[name] for name in ("user.offsets", "event.item", "event.time_us", "event.split"))
    found, targets = np.zeros(3, np.int64), 0
    for user in range(len(offsets) - 1):
        for event in range(offsets[user], offsets[user + 1]):
            if split[event] != prepare.TEST:
                continue
            past = item[offsets[user]:event][time_us[offsets[user]:event] < time_us[event]]
            if len(past) == 0:
                continue
            cut, target = max(0, len(past) - short_items), item[event]
            long_part, short = past[:cut], past[cut:]
            bucket = long_part[sid[long_part, 0] == sid[target, 0]][-retrieved_items:]
            alike = [bool((sid[part, :2] == sid[target, :2]).all(1).any()) for part in (bucket, short)]
            found += np.array([(bucket == target).any(), *alike])
            targets += 1
    names = ("bucket_has_target", "bucket_has_same_two_codes", "short_window_has_same_two_codes")
    return {"targets": targets, **{name: round(count / max(1, targets), 4) for name, count in zip(names, found.tolist())}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with log.safetensors")
    parser.add_argument("--version", required=True, help="version directory whose codes are taken")
    arguments = parser.parse_args()
    log, _ = tensor_file.read_tensors(os.path.join(arguments.data, "log.safetensors"))
    items, _ = tensor_file.read_tensors(os.path.join(arguments.version, "items.safetensors"))
    with open(os.path.join(arguments.version, "model.textproto"), encoding="utf-8") as file:
        settings = config.from_text(file.read())
    row = np.searchsorted(items["item.id"], log["item.id"])
    if not np.array_equal(items["item.id"][np.minimum(row, len(items["item.id"]) - 1)], log["item.id"]):
        parser.error(f"--version {arguments.version}: it does not have all items of {arguments.data}")
    sid = items["item.sid"].astype(np.int64)[row]
    print(json.dumps(shares(log, sid, settings.short_items, settings.retrieved_items)))


if __name__ == "__main__":
    main()
