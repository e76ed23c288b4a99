"""Metrics of finished trainings on the test split, with paired bootstrap over users: the table of a model card.

    python3 -m models.training.report --data SHARDS --config model.textproto --runs DIR [--json] [--card card.json]

DIR holds results.jsonl and <name>.logits.safetensors as models/training/sweep.py writes them ("test": true). Runs of
one kind are its seeds. Logits are Platt-calibrated on validation before log loss and PCOC; AUC and GAUC do not change.
"""
import argparse
import json
import os

import numpy as np

from models.training import config as grab_config
from models.training import metrics, shards, tensor_file


def load_runs(folder):
    """{kind: [(row, tensors)]} of the runs whose test logits were written, ordered by seed."""
    runs = {}
    with open(os.path.join(folder, "results.jsonl")) as file:
        for line in file:
            row = json.loads(line)
            path = os.path.join(folder, f"{row['name']}.logits.safetensors")
            if "error" not in row and os.path.exists(path):
                runs.setdefault(row["kind"], []).append((row, tensor_file.read_tensors(path)[0]))
    return {kind: sorted(listed, key=lambda run: run[0]["seed"]) for kind, listed in runs.items()}


def evaluate_runs(data, runs, replicates=1000, reference="grab"):
    """{"metrics": {kind: {metric: {mean, spread, seeds}}}, "versus": {kind: bootstrap of reference minus kind}}."""
    label = data.label.cpu().numpy().astype(np.float64)
    table, logits, index = {}, {}, None
    for kind, listed in runs.items():
        rows, logits[kind] = [], []
        for _, tensors in listed:
            if index is None:
                index = tensors["test.index"]
            if not np.array_equal(index, tensors["test.index"]):
                raise ValueError(f"{kind}: the run scored other targets than the first run")
            a, b = metrics.platt(label[tensors["validation.index"]], tensors["validation.logits"])
            rows.append(metrics.evaluate(data.user[index], label[index], a * tensors["test.logits"] + b))
            logits[kind].append(tensors["test.logits"])
        table[kind] = {name: {"mean": float(np.mean([row[name] for row in rows])),
                              "spread": float(np.std([row[name] for row in rows], ddof=1)) if len(rows) > 1 else 0.0,
                              "seeds": [row[name] for row in rows]} for name in rows[0]}
    versus = {kind: metrics.paired_bootstrap(data.user[index], label[index], logits[reference], logits[kind],
                                             replicates) for kind in runs if kind != reference}
    return {"targets": int(len(index)), "metrics": table, "versus": versus}


def markdown(report, names):
    """The two tables of a card."""
    lines = ["| model | AUC | GAUC | log loss | PCOC |", "| --- | --- | --- | --- | --- |"]
    for kind in names:
        if kind in report["metrics"]:
            row = report["metrics"][kind]
            cells = [f"{row[m]['mean']:.4f} ± {row[m]['spread']:.4f}" for m in ("auc", "gauc", "log_loss", "pcoc")]
            lines.append(f"| {names[kind]} | " + " | ".join(cells) + " |")
    lines += ["", "| GRAB minus | AUC, 95 % interval | GAUC, 95 % interval |", "| --- | --- | --- |"]
    for kind in names:
        if kind in report["versus"]:
            row = report["versus"][kind]
            cells = [f"{row[m]['mean']:+.4f} [{row[m]['low']:+.4f}, {row[m]['high']:+.4f}]" for m in ("auc", "gauc")]
            lines.append(f"| {names[kind]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def card(report, shipped):
    """card.json: the baselines' metrics by name, as `backstory evaluate --card` reads them, and the shipped run's."""
    names = {"hstu": "hstu", "din": "din", "bias": "bias_regression", "popularity": "item_rate"}

    def means(kind):
        row = report["metrics"][kind]
        return {**{m: round(row[m]["mean"], 5) for m in row}, "auc_spread": round(row["auc"]["spread"], 5),
                "gauc_spread": round(row["gauc"]["spread"], 5), "seeds": len(row["auc"]["seeds"])}

    grab = report["metrics"]["grab"]
    return {"split": "test", "targets": report["targets"], "grab": means("grab"),
            "shipped": {m: round(grab[m]["seeds"][shipped], 5) for m in grab},
            "baselines": {name: means(kind) for kind, name in names.items() if kind in report["metrics"]},
            "grab_minus": {name: report["versus"][kind] for kind, name in names.items() if kind in report["versus"]}}


NAMES = {"grab": "GRAB", "hstu": "HSTU-style ranker", "din": "DIN", "bias": "bias regression",
         "popularity": "item rate"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--config", required=True)
    parser.add_argument("--runs", required=True)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--card", help="write card.json of a version here")
    arguments = parser.parse_args()
    with open(arguments.config) as file:
        data = shards.Dataset(arguments.data, grab_config.from_text(file.read()))
    runs = load_runs(arguments.runs)
    report = evaluate_runs(data, runs)
    if arguments.card:
        best = int(np.argmax([row["best"]["auc"] for row, _ in runs["grab"]]))  # the seed that validation prefers ships
        with open(arguments.card, "w") as file:
            json.dump(card(report, best), file, indent=1)
    print(json.dumps(report, indent=1) if arguments.json else markdown(report, NAMES))


if __name__ == "__main__":
    main()
