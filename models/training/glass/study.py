"""Many trainings at once on one device: sweeps, seeds and ablations.

    python3 -m models.training.glass.study --jobs jobs.jsonl --out STUDY [--parallel 8] [--seconds 200]

A line of jobs.jsonl is a job as train.build takes it, plus `name` (its folder under STUDY), `test` and `options`. Kinds
beside "glass" and "sasrec", which learn nothing by gradient: "popularity", "own_counts", "item_knn" (its settings are
chosen on validation). STUDY/results.jsonl gets a line per job. Processes share the device; a job that fails says so in
its line. `keep` is false for jobs whose weights nobody needs: their weights and checkpoint are deleted at the end.
"""
import argparse
import gc
import json
import multiprocessing
import os
import sys
import time
import traceback

import torch

from models.training.glass import baselines, data, evaluate, train, trainer

_KNN = [{"decay": decay, "last": last, "window": window} for window in (0, 25) for decay, last in
        ((0.8, 50), (0.95, 100), (1.0, 1000))]


def plain_baseline(job, out, device):
    """A baseline without gradients. Returns the summary; ranks of the test targets like train.run."""
    _, log = train.build({**job, "kind": "sasrec", "sasrec": {"d": 2, "layers": 1, "heads": 1}}, device)
    check = trainer.validation_samples(log, trainer.DEFAULTS["validation_max"])
    own = 0.0 if log.unseen_only else 1.0
    best, chosen = None, None
    if job["kind"] == "item_knn":
        similarity, built = None, None
        for settings in _KNN:
            if settings["window"] != built:
                similarity, built = baselines.item_similarity(log, window=settings["window"]), settings["window"]
            for weight in ((0.0, 0.1, 1.0) if own else (0.0,)):
                options = {"decay": settings["decay"], "last": settings["last"], "own": weight}
                found = evaluate.metrics(baselines.item_knn(log, check, similarity, **options)["item"])
                if best is None or found["ndcg@20"] > best["ndcg@20"]:
                    best, chosen = found, (settings, options)
        similarity = baselines.item_similarity(log, window=chosen[0]["window"])
        ranker = lambda sample: baselines.item_knn(log, sample, similarity, **chosen[1])  # noqa: E731
    else:
        ranker = lambda sample: getattr(baselines, job["kind"])(log, sample)  # noqa: E731
        best = evaluate.metrics(ranker(check)["item"])

    class Task:
        @staticmethod
        def rank(_, sample, options):
            return ranker(sample)

    os.makedirs(out, exist_ok=True)
    summary = {"job": job, "best": best, "chosen": chosen}
    if job.get("test"):
        summary["test"] = train.ranked(Task, log, log.samples(data.TEST), {}, os.path.join(out, "test.safetensors"))
    return summary


def _one(job, folder, device):
    begin, out = time.time(), os.path.join(folder, job["name"])
    try:
        torch.set_num_threads(1)
        if job.get("kind", "glass") in ("glass", "sasrec"):
            with open(os.path.join(folder, f"{job['name']}.log"), "w") as stream:
                summary = train.run(job, out, device, trainer.Progress(stream, job["name"]))
            summary["epochs"] = len(summary["epochs"])
        else:
            summary = plain_baseline(job, out, device)
        if not job.get("keep", True):
            for name in ("weights.safetensors", "checkpoint.pt"):
                if os.path.exists(os.path.join(out, name)):
                    os.remove(os.path.join(out, name))
        return {"name": job["name"], **summary, "seconds": time.time() - begin}
    except Exception:  # one job's fault must not lose the others' results
        error = traceback.format_exc()[-1500:]
        return {"name": job["name"], "job": job, "error": error, "seconds": time.time() - begin}


def _worker(queue, results, folder, device):
    for job in iter(queue.get, None):
        results.put(_one(job, folder, device))
        gc.collect()
        if device != "cpu":
            torch.cuda.empty_cache()


def run_all(jobs, folder, device, parallel, seconds=0.0):
    """Runs all jobs; after `seconds` whatever is not finished is ended and missing from results.jsonl."""
    context = multiprocessing.get_context("spawn")
    queue, results = context.Queue(), context.Queue()
    for job in jobs:
        queue.put(job)
    workers = [context.Process(target=_worker, args=(queue, results, folder, device), daemon=True)
               for _ in range(min(parallel, len(jobs)))]
    for worker in workers:
        queue.put(None)
        worker.start()
    begin, done = time.time(), []
    with open(os.path.join(folder, "results.jsonl"), "a") as file:
        while len(done) < len(jobs):
            try:
                row = results.get(timeout=1.0)
            except Exception:  # queue.Empty of the context
                if (seconds and time.time() - begin > seconds) or not any(worker.is_alive() for worker in workers):
                    break
                continue
            done.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            best = row.get("best") or {}
            print(f"{row['seconds']:6.1f} s  {row['name']:28s} val hit@10 {best.get('hit@10', 0):.4f} ndcg@20 "
                  f"{best.get('ndcg@20', 0):.4f} best epoch {best.get('epoch', 0)} of {row.get('epochs', 0)}"
                  + (f"  test hit@10 {row['test']['item']['hit@10']:.4f} ndcg@20 {row['test']['item']['ndcg@20']:.4f}"
                     if row.get("test") else "") + row.get("error", ""), flush=True)
    for worker in workers:
        if worker.is_alive():
            worker.terminate()
    return done


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.0, help="end what is still running after so long; 0 = never")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    with open(arguments.jobs) as file:
        jobs = [json.loads(line) for line in file if line.strip()]
    names = [job["name"] for job in jobs]
    if len(set(names)) < len(names):
        sys.exit("two jobs share a name")
    os.makedirs(arguments.out, exist_ok=True)
    done = run_all(jobs, arguments.out, arguments.device, arguments.parallel, arguments.seconds)
    print(f"{len(done)} of {len(jobs)} jobs finished")


if __name__ == "__main__":
    main()
