"""Writes a GLASS version directory from a finished run, and reads one back.

    python3 -m models.training.glass.export --run RUN --data DATA --sid DATA/sid-64.safetensors --name glass-ml \\
        --history RATING:4 --out models/zoo/glass-ml/1 [--add FILE ...]

proto/backstory/model/v1/glass.proto describes the files. A version is immutable: an existing MANIFEST is never
overwritten.
"""
import argparse
import dataclasses
import json
import os
import shutil

import numpy as np

from models.training import export as grab_export
from models.training import tensor_file, textproto
from models.training.glass import config as glass_config
from models.training.glass import data, goldens, history, sid, twin

_SID_MAX = 65535


def items_tensors(config, log_item_id, codes, bins, prior):
    """items.safetensors."""
    if (np.diff(log_item_id) <= 0).any():
        raise ValueError("item.id: must be ascending without repeats")
    tensors = {"item.id": np.asarray(log_item_id, np.int64), "item.sid": np.asarray(codes).astype(np.uint16),
               "item.prior": np.asarray(prior, np.float32)}
    if config.bins:
        tensors["item.tier_bin"] = bins
    return tensors


def write_version(folder, config, weights, items, quantiser, cases, extra=()):
    """Writes everything, MANIFEST last. Refuses a finished version and tensors that are not the configuration's."""
    if os.path.exists(os.path.join(folder, "MANIFEST")):
        raise ValueError(f"{folder}: a finished version is immutable; export to another number")
    shapes = glass_config.weight_shapes(config)
    if set(shapes) != set(weights):
        raise ValueError(f"tensors {sorted(set(shapes) ^ set(weights))} are missing or one too many")
    for name, shape in shapes.items():
        if tuple(weights[name].shape) != tuple(shape) or not np.isfinite(weights[name]).all():
            raise ValueError(f"tensor {name}: shape {weights[name].shape}, expected {shape}, all finite")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "model.textproto"), "w") as file:
        file.write(glass_config.to_text(config))
    tensor_file.write_tensors(os.path.join(folder, "weights-00001-of-00001.safetensors"),
                              {name: np.asarray(weights[name], np.float32) for name in shapes})
    tensor_file.write_tensors(os.path.join(folder, "items.safetensors"), items)
    tensor_file.write_tensors(os.path.join(folder, "quantiser.safetensors"), quantiser)
    goldens.write_cases(os.path.join(folder, "goldens.jsonl"), cases)
    for path in extra:
        shutil.copy(path, folder)
    grab_export.write_manifest(folder)


class Version:
    """A version read back: config, model (float64, eval), catalogue, item ids and priors, quantiser tensors."""

    def __init__(self, folder):
        with open(os.path.join(folder, "model.textproto")) as file:
            self.config = glass_config.from_text(file.read())
        weights, _ = tensor_file.read_tensors(os.path.join(folder, "weights-00001-of-00001.safetensors"))
        items, _ = tensor_file.read_tensors(os.path.join(folder, "items.safetensors"))
        self.quantiser, _ = tensor_file.read_tensors(os.path.join(folder, "quantiser.safetensors"))
        self.model = twin.Glass(self.config)
        self.model.load_weights(weights)
        self.item_id, self.prior = items["item.id"], items["item.prior"]
        self.catalogue = _catalogue(self.config, items, self.quantiser["prototype"])
        found = sid.version(_frozen(self.quantiser, items["item.sid"]), self.quantiser["prototype"])
        if found != self.config.sid_version:
            raise ValueError(f"{folder}: sid_version {self.config.sid_version} is not that of the SIDs and codebooks")
        self.scorer = goldens.Scorer(self.model, self.catalogue, self.item_id, self.prior)


def _catalogue(config, items, prototype):
    """history.Catalogue from stored bins: embeddings of the items are not in a version and not needed."""
    catalogue = history.Catalogue(dataclasses.replace(config, tier_edges=()), items["item.sid"],
                                  np.zeros((len(items["item.sid"]), prototype.shape[1]), np.float32), prototype)
    catalogue.config, catalogue.bins = config, items.get("item.tier_bin")
    return catalogue


def _frozen(quantiser, codes):
    """What sid_version covers: codebooks, encoder and the catalogue's SIDs."""
    return {**{name: value for name, value in quantiser.items() if name.startswith(("codebook.", "encoder."))},
            "sid": np.asarray(codes, np.int64)}


def parse_history(rules):
    """HistoryRule messages of ["RATING:4", "PURCHASE"]."""
    parsed = []
    for rule in rules:
        action, _, least = rule.partition(":")
        parsed.append([("action", textproto.Enum(action))] + ([("min_value", float(least))] if least else []))
    return parsed


def export(run, folder, sid_file, out, name, rules, extra=(), items_file="items.safetensors", seed=1, space=""):
    """Version directory of a run of train.py; returns its Version."""
    weights, metadata = tensor_file.read_tensors(os.path.join(run, "weights.safetensors"))
    codes, about = tensor_file.read_tensors(sid_file)
    config = glass_config.from_text(metadata["config"])
    log = data.Log(folder, codes["sid"], config, items_file=items_file)
    made, _ = tensor_file.read_tensors(os.path.join(folder, items_file))
    quantiser = {name: value for name, value in codes.items() if name != "sid"}
    quantiser.update({"prototype": log.catalogue.prototype},
                     **{name: made[name] for name in ("text.mean", "text.projection") if name in made})
    widths = [quantiser[f"encoder.{i}.w"].shape[0] for i in range(99) if f"encoder.{i}.w" in quantiser]
    config = dataclasses.replace(
        config, name=name, history=parse_history(rules), embedding_space=space,
        sid_version=sid.version(_frozen(quantiser, codes["sid"]), log.catalogue.prototype),
        quantiser=[("kind", textproto.Enum(about["kind"]))] + [("hidden", int(width)) for width in widths[:-1]] +
        [("latent", int(quantiser["codebook.0"].shape[1]))])
    prior = log.train_counts().astype(np.float32)
    model = twin.Glass(config)
    model.load_weights(weights)
    log.catalogue.config = config
    scorer = goldens.Scorer(model, log.catalogue, log.item_id, prior)
    cases = goldens.CaseMaker(scorer, seed).cases()
    write_version(out, config, weights, items_tensors(config, log.item_id, codes["sid"], log.catalogue.bins, prior),
                  quantiser, cases, extra)
    return Version(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="folder of models.training.glass.train")
    parser.add_argument("--data", required=True)
    parser.add_argument("--sid", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--history", action="append", default=[], metavar="ACTION[:MIN_VALUE]",
                        help="events that are behaviours, such as RATING:4; none = every action")
    parser.add_argument("--embedding-space", default="", help="what the item embeddings are of, such as minilm-l6")
    parser.add_argument("--add", action="append", default=[], help="further files of the version, such as a model card")
    arguments = parser.parse_args()
    version = export(arguments.run, arguments.data, arguments.sid, arguments.out, arguments.name, arguments.history,
                     arguments.add, space=arguments.embedding_space)
    size = sum(os.path.getsize(os.path.join(arguments.out, name)) for name in os.listdir(arguments.out))
    print(json.dumps({"out": arguments.out, "bytes": size, "items": len(version.item_id),
                      "sid": sid.report(version.catalogue.sid, version.config.levels)}))


if __name__ == "__main__":
    main()
