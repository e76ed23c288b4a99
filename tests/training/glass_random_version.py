"""A generative version with random weights, written by the exporter's own code: its goldens are the twin's, in float64.

    python3 -m tests.training.glass_random_version OUT [--profile COMPAT|PAPER] [--neighbours N] [--seed N]
"""
import argparse
import dataclasses

import numpy as np

from models.training import textproto
from models.training.glass import export, goldens, history, sid, twin
from tests.training import glass_synthetic as synthetic


def write(out, name="glass-tiny", profile="COMPAT", seed=1, items=90, **fields):
    """Returns (item ids, embeddings)."""
    embedding, tensors = synthetic.catalogue(items, seed)
    codes = tensors["sid"]
    defaults = {} if profile == "COMPAT" else {"tokens": "DENSE", "vocabulary": 0}
    config = synthetic.config(profile=profile, **{**({"tokens": "STRIDED"} if profile == "COMPAT" else {}), **defaults, **fields})
    catalogue = history.Catalogue(config, codes, embedding)
    quantiser = {**{key: value for key, value in tensors.items() if key != "sid"}, "prototype": catalogue.prototype}
    frozen = {**{key: value for key, value in quantiser.items() if key.startswith("codebook.")}, "sid": codes.astype(np.int64)}
    config = dataclasses.replace(
        config, name=name, history=export.parse_history(["RATING:4"]), sid_version=sid.version(frozen, catalogue.prototype),
        quantiser=[("kind", textproto.Enum("RQ_KMEANS")), ("latent", int(tensors["codebook.0"].shape[1]))])
    catalogue.config = config
    model = twin.Glass(config, seed=seed, std=0.3)
    ids = np.arange(items) * 10 + 7
    prior = np.random.default_rng(seed).integers(0, 50, items).astype(np.float32)
    weights = {key: value.detach().numpy().copy() for key, value in model.named_weights().items()}
    cases = goldens.CaseMaker(goldens.Scorer(model, catalogue, ids, prior), seed).cases()
    export.write_version(out, config, weights, export.items_tensors(config, ids, codes, catalogue.bins, prior), quantiser,
                         cases)
    return ids, embedding


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--profile", default="COMPAT", choices=("COMPAT", "PAPER"))
    parser.add_argument("--neighbours", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    write(arguments.out, profile=arguments.profile, neighbours=arguments.neighbours, seed=arguments.seed)


if __name__ == "__main__":
    main()
