"""Runs many trainings in parallel processes on one machine and writes one JSON line per training.

    python3 -m models.training.sweep --data SHARDS --config model.textproto --jobs jobs.json --out DIR

jobs.json: a list of {"name", "kind", "seed", "settings": {...}, "keep": bool, "test": bool}. `keep` writes the weights,
`test` the logits of the test split (read it once, at the end). Without either a job reports validation alone.
"""
import argparse
import json
import os
import queue
import sys
import time
import traceback

import numpy as np
import torch
import torch.multiprocessing as mp

from models.training import config as grab_config
from models.training import rankers, shards, tensor_file, textproto, trainer


def run_job(job, base, folder, device, out, datasets):
    """Trains one job; returns its result row."""
    config, arguments, options = rankers.split_settings(base, job.get("settings", {}))
    key = (textproto.write(config.tokenizer), config.n_act)
    if key not in datasets:
        datasets.clear()
        datasets[key] = shards.Dataset(folder, config, device)
    data = datasets[key]
    options["seed"] = job.get("seed", 0)
    model = rankers.build(job["kind"], config, arguments, options["seed"]).to(device)
    begin = time.time()
    state = {"best": None, "history": []}
    if any(True for _ in model.parameters()):
        state = trainer.fit(model, data, options)
    row = {"name": job["name"], "kind": job["kind"], "seed": options["seed"], "settings": job.get("settings", {}),
           "best": state["best"], "epochs": len(state["history"]), "seconds": time.time() - begin,
           "parameters": sum(p.numel() for p in model.parameters())}
    options = {**trainer.DEFAULTS, **options}
    files = {}
    if job.get("test"):
        for split, name in ((shards.VALIDATION, "validation"), (shards.TEST, "test")):
            index, logits = trainer.predict(model, data, split, options)
            files[f"{name}.index"], files[f"{name}.logits"] = index, logits
        tensor_file.write_tensors(os.path.join(out, f"{job['name']}.logits.safetensors"), files)
    if job.get("keep"):
        weights = model.named_weights() if job["kind"] == "grab" else dict(model.named_parameters())
        arrays = {name: p.detach().cpu().numpy() for name, p in weights.items()}
        tensor_file.write_tensors(os.path.join(out, f"{job['name']}.weights.safetensors"), arrays,
                                  {"row": json.dumps(row), "config": grab_config.to_text(config)})
    return row


def _worker(number, jobs, results, arguments):
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() and not arguments.cpu else "cpu"
    with open(arguments.config) as file:
        base = grab_config.from_text(file.read())
    datasets = {}
    while time.time() < arguments.deadline:
        try:
            job = jobs.get_nowait()
        except queue.Empty:
            break
        try:
            results.put(run_job(job, base, arguments.data, device, arguments.out, datasets))
        except Exception:
            results.put({"name": job["name"], "kind": job["kind"], "error": traceback.format_exc()})
    results.put(None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--config", required=True)
    parser.add_argument("--jobs", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--seconds", type=float, default=1e6, help="start no job after this long")
    parser.add_argument("--grace", type=float, default=1e6, help="end running jobs this long after --seconds")
    parser.add_argument("--cpu", action="store_true")
    arguments = parser.parse_args()
    arguments.deadline = time.time() + arguments.seconds
    os.makedirs(arguments.out, exist_ok=True)
    with open(arguments.jobs) as file:
        listed = json.load(file)
    context = mp.get_context("spawn")
    jobs, results = context.Queue(), context.Queue()
    for job in listed:
        jobs.put(job)
    time.sleep(0.2)  # a multiprocessing queue hands its items over in the background
    workers = [context.Process(target=_worker, args=(i, jobs, results, arguments)) for i in range(arguments.workers)]
    for worker in workers:
        worker.start()
    running, begin = len(workers), time.time()
    with open(os.path.join(arguments.out, "results.jsonl"), "w") as file:
        while running:
            try:
                row = results.get(timeout=max(0.0, arguments.deadline + arguments.grace - time.time()))
            except queue.Empty:
                break
            if row is None:
                running -= 1
                continue
            file.write(json.dumps(row) + "\n")
            file.flush()
            best = row.get("best") or {}
            print(f"{time.time() - begin:6.0f} s  {row['name']:24s} AUC {best.get('auc', np.nan):.4f}  GAUC "
                  f"{best.get('gauc', np.nan):.4f}  {row.get('error', '')}", file=sys.stderr, flush=True)
    for worker in workers:
        if running:
            worker.terminate()
        worker.join()


if __name__ == "__main__":
    main()
