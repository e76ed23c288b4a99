"""The quality study as jobs of study.py: seeds x (GLASS, three ablations, SASRec), baselines, codebooks, neighbours.

    python3 -m models.training.glass.jobs --set ml=DATA --set journey=DATA2 --steps 3000 > jobs.jsonl
    python3 -m models.training.glass.study --jobs jobs.jsonl --out STUDY --parallel 8
    python3 -m models.training.glass.report --study STUDY --set ml --data DATA --sid DATA/sid-64.safetensors

DATA needs sid-64.safetensors (main codebooks [64,128,128], RQ_VAE); sid-k64 and sid-k128 (RQ_KMEANS with 64 and 128
first codes), where they are there, add the comparison of quantisers, codebook sizes and neighbour augmentation, one
seed each, but all seeds of k-means with 128 and its TIGER. Jobs come in order of importance, so that a study that is cut
short loses the least: all variants of seed 0
first.
"""
import argparse
import json
import os

import numpy as np

from models.training import tensor_file
from models.training.glass import prepare

SIZES = {"d": 96, "heads": 3, "d_kv": 32, "ffn": 384}
VARIANTS = {"full": [], "tiger": ["tier", "search"], "notier": ["tier"], "nosearch": ["search"]}
EVALUATIONS = 4
# What was tried on ml-latest-small because the additions did not pay, one step back from the settings below at a time;
# GLASS and TIGER, seed 0, validation alone. "before" is how the study was first run.
PLAIN = {"two_sided": 0.0, "keep_min": 1.0, "long_dropout": 0.0}
REMEDIES = {
    "before": {"options": {**PLAIN, "label_smoothing": 0.0, "lr": 3e-3}, "dropout": 0.2, "model": {"short_items": 50},
               "standardise": False, "start_tiers": False, "gate_start": 0.0},
    "real_histories": {"options": PLAIN},
    "no_smoothing": {"options": {"label_smoothing": 0.0}},
    "random_start": {"start_tiers": False, "gate_start": 0.0},
    "whole_long_part": {"options": {"long_dropout": 0.0}},
    "short10": {"model": {"short_items": 10}}, "short20": {"model": {"short_items": 20}},
    "short50": {"model": {"short_items": 50}},
}


def _options(log, steps, batch, seconds, **more):
    """Options whose epochs together make `steps` steps, validated EVALUATIONS times."""
    first = np.flatnonzero(np.r_[True, np.diff(log["event.time_us"]) != 0])  # about as many moments as samples
    samples = int((log["event.split"][first] == prepare.TRAIN).sum())
    share = min(1.0, min(64.0, steps / EVALUATIONS) * (batch + 0.5) / samples)
    per_epoch = max(1, int(samples * share) // batch)
    epochs = max(EVALUATIONS, round(steps / per_epoch))
    return {"batch": batch, "epochs": epochs, "epoch_share": share, "evaluate_every": max(1, epochs // EVALUATIONS),
            "patience": epochs, "validation_max": 5000, "beam": 50, "seconds_max": seconds, **more}


def make(name, folder, steps, seeds, remedies=False, seconds=0.0):
    """Jobs of one data set. steps of a network; seconds: when a network must end whatever its steps, 0 = never."""
    log, about = tensor_file.read_tensors(os.path.join(folder, "log.safetensors"))
    unseen = about.get("unseen_only") == "true"
    # Chosen on validation. A small log of items that never repeat, whose newest events say nearly everything, wants a
    # short window (TIGER a longer one than GLASS, whose long part begins where the window ends) and much randomness.
    short = {"full": 10, "notier": 10, "nosearch": 10, "tiger": 20, "tiger10": 10} if unseen else {}
    glass = _options(log, steps, 256, seconds, lr=4e-3, warmup=200, average=0.995, label_smoothing=0.1,
                     **({"targets": 4, "horizon": 4, "two_sided": 1.0, "keep_min": 0.5, "long_dropout": 0.5} if unseen
                        else {"targets": 8}))
    sasrec = {**_options(log, steps, 64, seconds), **({"epochs": 10, "epoch_share": 0.5, "evaluate_every": 1} if unseen
                                                      else {}), "targets": 1, "lr": 3e-4 if unseen else 1e-3}
    base = {"data": folder, "test": True, "keep": False}

    def of(variant, sid="sid-64", **more):
        return {**base, "name": f"{name}-{variant}", "sid": os.path.join(folder, f"{sid}.safetensors"), **more}

    def network(variant, seed, sid="sid-64", without=(), model={}, options={}, **more):
        sizes = {**SIZES, "short_items": short.get(variant.split("_")[-1], 10 if unseen else 50), **model}
        return of(f"{variant}-{seed}", sid, seed=seed, without=list(without), model=sizes,
                  options={**glass, **options}, test_beam=200 if unseen else 50, keep=variant in ("full", "kmeans128"),
                  **{"dropout": 0.1, "start_tiers": True, "gate_start": -2.0, **more})

    jobs = []
    for seed in range(seeds):
        jobs += [network(variant, seed, without=without) for variant, without in VARIANTS.items()]
        jobs += [network("tiger10", seed, without=VARIANTS["tiger"])] if unseen else []
        jobs.append(of(f"sasrec-{seed}", kind="sasrec", seed=seed, options=sasrec,
                       sasrec={"dropout": 0.5 if unseen else 0.1}))
        if seed == 0:
            jobs += [of(kind, kind=kind) for kind in ("popularity", "item_knn") + (() if unseen else ("own_counts",))]
    for remedy, change in REMEDIES.items() if remedies else ():
        for variant in ("full", "tiger"):
            jobs.append({**network(f"{remedy}_{variant}", 0, without=VARIANTS[variant], **change), "test": False})
    for variant, sid, model in (("kmeans64", "sid-k64", {}), ("kmeans128", "sid-k128", {}),
                                ("kmeans128_neighbours", "sid-k128", {"neighbours": 2})):
        if os.path.exists(os.path.join(folder, f"{sid}.safetensors")):
            all_seeds = range(max(1, seeds if variant == "kmeans128" else 1))
            jobs += [network(variant, seed, sid, model=model) for seed in all_seeds]
            if variant == "kmeans128":
                window = {"short_items": 10} if unseen else {}
                jobs += [network(f"{variant}_tiger", seed, sid, VARIANTS["tiger"], window) for seed in all_seeds]
    return jobs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--steps", type=int, default=3000, help="optimiser steps of every network")
    parser.add_argument("--seeds", type=int, default=3, help="0 = only what is asked for beside the main table")
    parser.add_argument("--remedies", action="store_true", help="also " + ", ".join(REMEDIES))
    parser.add_argument("--job-seconds", type=float, default=0.0, help="end of a network's training; 0 = after --steps")
    arguments = parser.parse_args()
    sets = [make(*pair.split("=", 1), arguments.steps, arguments.seeds, arguments.remedies, arguments.job_seconds)
            for pair in arguments.set]
    for i in range(max(len(jobs) for jobs in sets)):  # sets take turns
        for jobs in sets:
            if i < len(jobs):
                print(json.dumps(jobs[i]))


if __name__ == "__main__":
    main()
