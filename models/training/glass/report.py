"""Tables of a finished study: metrics with seed spread, differences with paired bootstrap, gain by history length.

    python3 -m models.training.glass.report --study STUDY --set ml --data DATA --sid DATA/sid.safetensors [--plot FILE]

STUDY holds NAME/test.safetensors as study.py writes them; runs are named SET-VARIANT-SEED (jobs.py), baselines that
learn nothing SET-VARIANT. Every test target is one sample; bootstraps draw users, and average seeds before they
subtract.
"""
import argparse
import glob
import json
import os
import re

import numpy as np

from models.training import tensor_file
from models.training.glass import config as glass_config
from models.training.glass import data, evaluate

NAMES = {"full": "GLASS", "tiger": "without both (TIGER)", "tiger10": "TIGER, window 10",
         "notier": "without SID-Tier", "nosearch": "without search",
         "kmeans64": "GLASS, RQ-k-means [64,128,128]", "kmeans128": "GLASS, RQ-k-means [128,128,128]",
         "kmeans128_neighbours": "the same with neighbours", "kmeans128_tiger": "TIGER on [128,128,128]",
         "sasrec": "SASRec", "item_knn": "item-kNN", "own_counts": "user's own counts", "popularity": "popularity"}
BINS = ((1, 50), (51, 100), (101, 200), (201, 500), (501, 10**9))


def load(study, prefix):
    """{variant: [ranks uint8 [targets], one array per seed]}."""
    runs = {}
    for path in sorted(glob.glob(os.path.join(study, f"{prefix}-*", "test.safetensors"))):
        name = os.path.basename(os.path.dirname(path))[len(prefix) + 1:]
        runs.setdefault(re.sub(r"-\d+$", "", name), []).append(tensor_file.read_tensors(path)[0]["rank.item"])
    return runs


class Targets:
    """Per test target: user, history length, whether it is of the user's very last moment."""

    def __init__(self, log):
        sample = log.samples(data.TEST)
        row, _ = evaluate.target_rows(log, sample)
        self.user = log.moment_user[sample][row]
        self.length = log.history_length(sample)[row]
        self.last = log.moment_is_last[sample][row]


def gains(ranks):
    """{"hit@10", "ndcg@20"}: per-target values averaged over the seeds of one variant."""
    stack = np.stack(ranks).astype(np.int64)
    return {"hit@10": (stack < 10).mean(0),
            "ndcg@20": np.where(stack < 20, 1 / np.log2(np.minimum(stack, 254) + 2.0), 0.0).mean(0)}


def bootstrap(user, difference, keep=None, replicates=1000, seed=0):
    """(mean, low, high) of the mean per-target difference, 95 %, users drawn with replacement."""
    keep = np.ones(len(user), bool) if keep is None else keep
    _, index = np.unique(user[keep], return_inverse=True)
    if not len(index):
        return (float("nan"),) * 3
    total, count = np.bincount(index, difference[keep]), np.bincount(index)
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(total), (replicates, len(total)))
    means = total[draws].sum(1) / count[draws].sum(1)
    return (float(total.sum() / count.sum()),) + tuple(float(x) for x in np.percentile(means, [2.5, 97.5]))


def evaluate_study(runs, targets, reference="full"):
    """Everything the tables hold, as plain data."""
    result = {"targets": int(len(targets.user)), "users": int(len(np.unique(targets.user))), "metrics": {}, "last": {},
              "versus": {}, "by_history": []}
    for variant, ranks in runs.items():
        if any(len(rank) != len(targets.user) for rank in ranks):
            raise ValueError(f"{variant}: ranks of {len(ranks[0])} targets, the log has {len(targets.user)}")
        for name, keep in (("metrics", slice(None)), ("last", targets.last)):
            rows = [evaluate.metrics(rank[keep]) for rank in ranks]
            result[name][variant] = {metric: {"mean": float(np.mean([row[metric] for row in rows])),
                                              "spread": float(np.std([row[metric] for row in rows], ddof=1))
                                              if len(rows) > 1 else None, "seeds": [row[metric] for row in rows]}
                                     for metric in rows[0]}
    values = {variant: gains(ranks) for variant, ranks in runs.items()}
    for variant in runs:
        if variant != reference and reference in runs:
            result["versus"][variant] = {
                metric: bootstrap(targets.user, values[reference][metric] - values[variant][metric])
                for metric in ("hit@10", "ndcg@20")}
    if reference in runs and "tiger" in runs:
        for low, high in BINS:
            keep = (targets.length >= low) & (targets.length <= high)
            row = {"low": low, "high": high, "targets": int(keep.sum())}
            if keep.any():
                for metric in ("hit@10", "ndcg@20"):
                    ours, other = values[reference][metric], values["tiger"][metric]
                    row[metric] = {"full": float(ours[keep].mean()), "tiger": float(other[keep].mean()),
                                   "difference": bootstrap(targets.user, ours - other, keep)}
            result["by_history"].append(row)
    return result


def _cell(entry):
    spread = "" if entry["spread"] is None else f" ± {entry['spread']:.4f}"
    return f"{entry['mean']:.4f}{spread}"


def markdown(result):
    """The three tables of a card."""
    order = [v for v in NAMES if v in result["metrics"]] + sorted(v for v in result["metrics"] if v not in NAMES)
    lines = [f"{result['targets']:,} test targets of {result['users']:,} users; mean ± deviation over seeds.", ""]
    for metric in ("hit", "ndcg"):
        cuts = [f"{metric}@{cut}" for cut in evaluate.CUTS]
        lines += ["| model | " + " | ".join(cuts) + " |", "| --- |" + " --- |" * len(cuts)]
        lines += [f"| {NAMES.get(v, v)} | " + " | ".join(_cell(result["metrics"][v][cut]) for cut in cuts) + " |"
                  for v in order] + [""]
    lines += ["| GLASS minus | hit@10, 95 % interval | ndcg@20, 95 % interval |", "| --- | --- | --- |"]
    for v in order:
        if v in result["versus"]:
            cells = ["{:+.4f} [{:+.4f}, {:+.4f}]".format(*result["versus"][v][m]) for m in ("hit@10", "ndcg@20")]
            lines.append(f"| {NAMES.get(v, v)} | " + " | ".join(cells) + " |")
    lines += ["", "| history before the moment | targets | GLASS ndcg@20 | TIGER ndcg@20 | difference, 95 % interval |",
              "| --- | --- | --- | --- | --- |"]
    for row in result["by_history"]:
        if row["targets"]:
            entry, high = row["ndcg@20"], "" if row["high"] >= 10**9 else str(row["high"])
            lines.append(f"| {row['low']}–{high} | {row['targets']:,} | {entry['full']:.4f} | {entry['tiger']:.4f} | "
                         + "{:+.4f} [{:+.4f}, {:+.4f}] |".format(*entry["difference"]))
    return "\n".join(lines) + "\n"


def plot(result, path, title):
    """Gain over TIGER by history length, with intervals."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    rows = [row for row in result["by_history"] if row["targets"]]
    difference = np.array([row["ndcg@20"]["difference"] for row in rows])
    figure, axis = pyplot.subplots(figsize=(5.5, 3.2))
    axis.bar(range(len(rows)), difference[:, 0], color="tab:blue", alpha=0.8,
             yerr=np.abs(difference[:, 1:] - difference[:, :1]).T, capsize=4)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xticks(range(len(rows)))
    axis.set_xticklabels([f"{row['low']}–{row['high'] if row['high'] < 10**9 else ''}" for row in rows])
    axis.set_xlabel("events before the moment"), axis.set_ylabel("NDCG@20, GLASS minus TIGER")
    axis.set_title(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", required=True)
    parser.add_argument("--set", required=True, help="prefix of the runs' names")
    parser.add_argument("--data", required=True)
    parser.add_argument("--sid", required=True)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot")
    arguments = parser.parse_args()
    sid, metadata = tensor_file.read_tensors(arguments.sid)
    levels = tuple(int(size) for size in metadata["levels"].split(","))
    config = glass_config.make("COMPAT", tokens="DENSE", vocabulary=0, levels=levels, tier_edges=(), retrieved_items=0)
    log = data.Log(arguments.data, sid["sid"], config)
    result = evaluate_study(load(arguments.study, arguments.set), Targets(log))
    print(json.dumps(result, indent=1) if arguments.json else markdown(result))
    if arguments.plot:
        plot(result, arguments.plot, log.about["name"])


if __name__ == "__main__":
    main()
