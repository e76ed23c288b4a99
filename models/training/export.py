"""Writes a model version directory (docs/reference/model-files.md) from trained weights.

    python3 -m models.training.export --weights run/weights.safetensors --data SHARDS \\
        --backstory build/release/bin/backstory --out models/zoo/NAME/1 [--category NAME ...] [--add FILE ...]

Golden cases are drawn from the configuration and tokenized by the backstory binary; calibration is Platt's, fitted on
the validation split of the shards. A version is immutable: an existing MANIFEST is never overwritten.
"""
import argparse
import hashlib
import os
import shutil

import numpy as np
import torch

from models.training import config as grab_config
from models.training import goldens, metrics, shards, tensor_file, textproto, trainer, twin


def write_manifest(folder):
    """MANIFEST over every other file of the folder, with SHA-256 digests; written last, through a rename."""
    names = []
    for base, _, files in os.walk(folder):
        names += [os.path.relpath(os.path.join(base, name), folder) for name in files]
    lines = ["backstory-manifest 1 sha256\n"]
    for name in sorted(name for name in names if name not in ("MANIFEST", "MANIFEST.tmp")):
        with open(os.path.join(folder, name), "rb") as file:
            data = file.read()
        lines.append(f"{hashlib.sha256(data).hexdigest()} {len(data)} {name}\n")
    with open(os.path.join(folder, "MANIFEST.tmp"), "w") as file:
        file.writelines(lines)
    os.replace(os.path.join(folder, "MANIFEST.tmp"), os.path.join(folder, "MANIFEST"))


def calibration_text(entries):
    """calibration/<n>.textproto of [(task, a, b)], for every scene."""
    fields = [("version", 1)]
    fields += [("entries", [("task", task), ("a", float(a)), ("b", float(b))]) for task, a, b in entries]
    return textproto.write(fields)


def write_version(folder, config, weights, cases, calibration=(), extra=()):
    """Writes everything, MANIFEST last. `cases` carry logits; `extra`: files to copy in. Refuses a finished version."""
    if os.path.exists(os.path.join(folder, "MANIFEST")):
        raise ValueError(f"{folder}: a finished version is immutable; export to another number")
    shapes = grab_config.weight_shapes(config)
    for name, shape in shapes.items():
        if tuple(weights[name].shape) != tuple(shape) or not np.isfinite(weights[name]).all():
            raise ValueError(f"tensor {name}: shape {weights[name].shape}, expected {shape}, all finite")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "model.textproto"), "w") as file:
        file.write(grab_config.to_text(config))
    tensor_file.write_tensors(os.path.join(folder, "weights-00001-of-00001.safetensors"),
                              {name: np.asarray(weights[name], np.float32) for name in shapes})
    goldens.write_cases(os.path.join(folder, "goldens.jsonl"), cases)
    if calibration:
        os.makedirs(os.path.join(folder, "calibration"), exist_ok=True)
        with open(os.path.join(folder, "calibration", "1.textproto"), "w") as file:
            file.write(calibration_text(calibration))
    for path in extra:
        shutil.copy(path, folder)
    write_manifest(folder)


def calibrate(config, weights, data):
    """Platt's (a, b) on the validation split, and the raw validation metrics."""
    model = twin.Grab(config, grab_config.weight_shapes(config)).eval()
    model.load_weights(weights)
    index, logits = trainer.predict(model.to(data.device), data, shards.VALIDATION, trainer.DEFAULTS)
    label = data.label.cpu().numpy()[index].astype(np.float64)
    return metrics.platt(label, logits), metrics.evaluate(data.user[index], label, logits)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="weights.safetensors of models.training.train")
    parser.add_argument("--data", required=True, help="the shards it was trained on")
    parser.add_argument("--backstory", required=True, help="the backstory binary, for `tokenize --cases`")
    parser.add_argument("--out", required=True)
    parser.add_argument("--name", help="model name, if not the configuration's")
    parser.add_argument("--category", action="append", default=[], help="category names for golden items")
    parser.add_argument("--add", action="append", default=[], help="further files of the version, such as a model card")
    parser.add_argument("--seed", type=int, default=1, help="of the golden cases")
    arguments = parser.parse_args()
    weights, metadata = tensor_file.read_tensors(arguments.weights)
    config = grab_config.from_text(metadata["config"])
    config.name = arguments.name or config.name
    data = shards.Dataset(arguments.data, config, "cuda" if torch.cuda.is_available() else "cpu")
    (a, b), scores = calibrate(config, weights, data)
    print(f"validation AUC {scores['auc']:.4f}, PCOC {scores['pcoc']:.3f} before Platt a {a:.4f} b {b:.4f}")
    items = [int(i) for i in np.unique(data.targets["item_id"].cpu().numpy())]
    items = items if all(i >= 0 for i in items) else [i for i in items if i >= 0] or range(1, 60)
    maker = goldens.CaseMaker(config, arguments.seed, items, arguments.category or ("a", "b", "c"), data.users[:50],
                              exposures=not _lone_actions(data))
    cases = maker.standard()
    tokens = goldens.tokenize_cases(arguments.backstory, cases, grab_config.to_text(config))
    cases = goldens.score_cases(config, weights, cases, tokens)
    write_version(arguments.out, config, weights, cases, [(config.tasks[0], a, b)], arguments.add)
    print(f"{arguments.out}: written; check it with `backstory model verify {arguments.out}`")


def _lone_actions(data):
    """Whether every row of channel 0 was closed at once: a log of actions without exposures, such as ratings."""
    rows = data.rows[0]
    return bool((rows["closed_us"] == rows["time_us"]).all())


if __name__ == "__main__":
    main()
