"""Trains one recommender on a data folder: GLASS, its ablations, or SASRec.

    python3 -m models.training.glass.train --data DATA --sid DATA/sid-64.safetensors --out RUN
    python3 -m models.training.glass.export --run RUN --data DATA --out models/zoo/NAME/1

RUN receives weights.safetensors of the best validation epoch, history.json, curves.png and checkpoint.pt; started again
with the same arguments, training goes on from the checkpoint. --test ranks the test split, once, at the very end.
"""
import argparse
import json
import os

import torch

from models.training import tensor_file
from models.training import train as grab_train
from models.training.glass import baselines, data, evaluate, trainer, twin
from models.training.glass import config as glass_config

# Sizes that suit logs of 10^4 to 10^6 events; the released model's sizes are the defaults of config.Config.
SMALL = {"profile": "COMPAT", "tokens": "DENSE", "vocabulary": 0, "first_step_epsilon": 0.0, "d": 64, "heads": 4,
         "d_kv": 16, "ffn": 256, "encoder_layers": 2, "decoder_layers": 2}
WITHOUT = {"tier": {"tier_edges": ()}, "search": {"retrieved_items": 0}}


def build(job, device):
    """(task, log) of a job: {"data", "sid", "items", "kind", "model": fields, "without": [...], "dropout", "seed",
    "standardise": whether training reads tier features as deviations from their mean (the default), "start_tiers":
    twin.Glass.start_additions with the first bias "gate_start" of the gates; below 0 begins close to TIGER}."""
    sid, metadata = tensor_file.read_tensors(job["sid"])
    levels = tuple(int(size) for size in metadata["levels"].split(","))
    embedding, _ = tensor_file.read_tensors(os.path.join(job["data"], job.get("items", "items.safetensors")))
    width = int(embedding["embedding"].shape[1])
    fields = {**SMALL, "levels": levels, "embedding_width": width, **job.get("model", {})}
    for name in job.get("without", ()):
        fields.update(WITHOUT[name])
    config = glass_config.make(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
    log = data.Log(job["data"], sid["sid"], config, device, job.get("items", "items.safetensors"))
    if job.get("kind", "glass") == "sasrec":
        return baselines.SasRec(log, seed=job.get("seed", 0), **job.get("sasrec", {})).to(device), log
    model = twin.Glass(config, seed=job.get("seed", 0), dropout=job.get("dropout", 0.1)).to(device)
    if config.bins and job.get("standardise", True):
        model.standardise_tiers(log.features[torch.from_numpy(log.samples(data.TRAIN)).to(device)])
    model.start_additions(job.get("start_tiers", False), job.get("gate_start", 0.0))
    return trainer.GlassTask(model), log


def run(job, out, device, progress=None):
    """Trains a job; writes weights, history and, with job["test"], ranks of the test targets. Returns the summary."""
    os.makedirs(out, exist_ok=True)
    task, log = build(job, device)
    options = {**trainer.DEFAULTS, **job.get("options", {}), "seed": job.get("seed", 0)}
    state = trainer.fit(task, log, options, os.path.join(out, "checkpoint.pt"), progress)
    if hasattr(task, "model"):
        task.model.fold_tiers()
    weights = task.model.named_weights() if hasattr(task, "model") else dict(task.named_parameters())
    config = glass_config.to_text(log.config)
    tensor_file.write_tensors(os.path.join(out, "weights.safetensors"),
                              {name: p.detach().cpu().numpy() for name, p in weights.items()},
                              {"config": config, "job": json.dumps(job)})
    beam = {**options, "beam": job.get("test_beam", options["beam"])}
    check = trainer.validation_samples(log, options["validation_max"])
    summary = {"job": job, "best": state["best"], "epochs": state["history"],
               "validation": ranked(task, log, check, beam, os.path.join(out, "validation.safetensors")),
               "parameters": int(sum(p.numel() for p in weights.values())),
               "out_of_time": state.get("out_of_time", False)}
    if hasattr(task, "model"):
        summary["losses"] = evaluate.losses(task.model, log, check)
    with open(os.path.join(out, "history.json"), "w") as file:
        json.dump(summary, file, indent=1)
    plot([row for row in state["history"] if "ndcg@20" in row], os.path.join(out, "curves.png"))
    if job.get("test"):
        summary["test"] = ranked(task, log, log.samples(data.TEST), beam, os.path.join(out, "test.safetensors"))
    return summary


def ranked(task, log, sample, options, path):
    """Ranks of all targets of `sample`, in the order of evaluate.target_rows, to a file; their metrics."""
    ranks = task.rank(log, sample, options)
    ranks = {name: rank for name, rank in ranks.items() if rank is not None}
    tensor_file.write_tensors(path, {f"rank.{name}": rank for name, rank in ranks.items()})
    return {name: evaluate.metrics(rank) for name, rank in ranks.items()}


def plot(history, path):
    """Loss and NDCG per epoch; goes on where matplotlib is missing."""
    try:
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return
    figure, left = pyplot.subplots(figsize=(6, 3.5))
    epochs = [row["epoch"] for row in history]
    left.plot(epochs, [row["train_loss"] for row in history], color="tab:blue", label="train loss")
    left.set_xlabel("epoch"), left.set_ylabel("train loss")
    right = left.twinx()
    right.plot(epochs, [row["ndcg@20"] for row in history], color="tab:red", label="validation NDCG@20")
    right.set_ylabel("validation NDCG@20")
    figure.legend(loc="upper center", ncol=2, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of models.training.glass.prepare and embed")
    parser.add_argument("--sid", required=True, help="file of models.training.glass.sid")
    parser.add_argument("--out", required=True)
    parser.add_argument("--kind", default="glass", choices=("glass", "sasrec"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", action="append", default=[], metavar="FIELD=VALUE",
                        help="a field of GlassModel: d=96, neighbours=2, ...")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                        help="a training option: " + ", ".join(trainer.DEFAULTS))
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--start-tiers", action="store_true", help="the tier token starts as a sum of first-level tokens")
    parser.add_argument("--gate-start", type=float, default=0.0, help="first bias of the gates; -2 begins close to TIGER")
    parser.add_argument("--without", action="append", default=[], choices=tuple(WITHOUT),
                        help="ablation; both = the plain backbone (TIGER)")
    parser.add_argument("--device", help="cpu or cuda; the default is cuda where there is one")
    parser.add_argument("--test", action="store_true")
    arguments = parser.parse_args()
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    job = {"data": arguments.data, "sid": arguments.sid, "kind": arguments.kind, "seed": arguments.seed,
           "model": grab_train.parse_settings(arguments.model), "options": grab_train.parse_settings(arguments.set),
           "dropout": arguments.dropout, "without": arguments.without, "test": arguments.test,
           "start_tiers": arguments.start_tiers, "gate_start": arguments.gate_start}
    summary = run(job, arguments.out, device, trainer.Progress())
    print(json.dumps({"validation": summary["best"], "test": summary.get("test")}))


if __name__ == "__main__":
    main()
