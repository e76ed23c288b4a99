"""Trains one ranker on token shards.

    backstory tokenize --events E --items I --model-config model.textproto --out shards/
    python3 -m models.training.train --data shards/ --config model.textproto --out run/
    python3 -m models.training.export --weights run/weights.safetensors --data shards/ --backstory BINARY --out NAME/1

run/ receives weights.safetensors of the best validation epoch, history.json, curves.png and checkpoint.pt; started
again with the same arguments, training goes on from the checkpoint. --test reads the test split, once, at the very end.
"""
import argparse
import json
import os
import sys

import numpy as np
import torch

from models.training import config as grab_config
from models.training import metrics, rankers, shards, tensor_file, trainer


def parse_settings(pairs):
    """{"lr": 0.001, ...} of ["lr=0.001", ...]; values are JSON, or text where they are not."""
    settings = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = value
    return settings


def plot(history, path):
    """Loss and AUC per epoch; says so and goes on where matplotlib is missing."""
    try:
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        print("no matplotlib: curves.png is not drawn", file=sys.stderr)
        return
    epochs = [row["epoch"] for row in history]
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4))
    axes[0].plot(epochs, [row["train_loss"] for row in history], label="training")
    axes[0].plot(epochs, [row["log_loss"] for row in history], label="validation")
    axes[0].set_ylabel("log loss")
    axes[1].plot(epochs, [row["auc"] for row in history], label="AUC")
    axes[1].plot(epochs, [row["gauc"] for row in history], label="GAUC")
    axes[1].set_ylabel("validation")
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def train(arguments):
    """Returns (model, data, options, state) of trainer.fit."""
    with open(arguments.config) as file:
        base = grab_config.from_text(file.read())
    settings = parse_settings(arguments.set)
    if arguments.sts:
        settings["sts_every"] = arguments.sts
    config, extra, options = rankers.split_settings(base, {**settings, "drop": arguments.drop})
    options["seed"] = arguments.seed
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    data = shards.Dataset(arguments.data, config, device)
    counts = np.bincount(data.split, minlength=3)
    print(f"{len(data.users)} users; targets: {counts[0]} train, {counts[1]} validation, {counts[2]} test; {device}",
          file=sys.stderr)
    if not counts[0] or not counts[1]:
        raise SystemExit("too few labelled events for a training and a validation part")
    model = rankers.build(arguments.kind, config, extra, arguments.seed).to(device)
    os.makedirs(arguments.out, exist_ok=True)
    state = trainer.fit(model, data, options, os.path.join(arguments.out, "checkpoint.pt"), trainer.Progress())
    weights = model.named_weights() if arguments.kind == "grab" else dict(model.named_parameters())
    tensor_file.write_tensors(os.path.join(arguments.out, "weights.safetensors"),
                              {name: p.detach().cpu().numpy() for name, p in weights.items()},
                              {"config": grab_config.to_text(config), "kind": arguments.kind,
                               "settings": json.dumps({**settings, "seed": arguments.seed})})
    with open(os.path.join(arguments.out, "history.json"), "w") as file:
        json.dump({"best": state["best"], "epochs": state["history"]}, file, indent=1)
    plot(state["history"], os.path.join(arguments.out, "curves.png"))
    return model, data, {**trainer.DEFAULTS, **options}, state


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of token shards")
    parser.add_argument("--config", required=True, help="model.textproto")
    parser.add_argument("--out", required=True, help="folder of the run")
    parser.add_argument("--kind", default="grab", choices=[k for k in rankers.KINDS if k != "popularity"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                        help="size, dropout or training option: lr=0.002, layers=2, epochs=30, ...")
    parser.add_argument("--drop", action="append", default=[], metavar="FIELD",
                        help="do without a field of the shards: p.item, f.user, dense.item_rate, channel.liked")
    parser.add_argument("--sts", type=int, default=0, metavar="N",
                        help="Sequence-Then-Sparse: a sparse stage after every N-th epoch; 0 trains jointly")
    parser.add_argument("--device", help="cpu or cuda; the default is cuda where there is one")
    parser.add_argument("--test", action="store_true", help="evaluate the test split at the end")
    arguments = parser.parse_args()
    model, data, options, state = train(arguments)
    print(json.dumps({"validation": state["best"]}))
    if arguments.test:
        index, logits = trainer.predict(model, data, shards.TEST, options)
        label = data.label.cpu().numpy()[index].astype(np.float64)
        print(json.dumps({"test": metrics.evaluate(data.user[index], label, logits)}))


if __name__ == "__main__":
    main()
