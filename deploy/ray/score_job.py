#!/usr/bin/env python3
"""Scores a Parquet table on a Ray cluster with Ray Data: docs/guides/batch-on-ray.md.

Rows are read by ranges, shuffled so that all rows of a user meet in one shard, and each shard is scored by one of
--workers actors, each with an engine of its own: a user's state is built once. Every shard is one part file, which its
actor publishes whole: a killed actor's shard is scored again elsewhere, a killed job goes on with --resume, and each
row is there exactly once.
"""
import argparse
import contextlib
import dataclasses
import logging
import os
import re
import sys
import time

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if "--verbose" not in sys.argv:
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # read when ray is imported

import numpy as np
import pyarrow as pa
import ray
import ray.data

from backstory_engine import _native, job as jobs, parts
from backstory_engine import columns as fields_of
from backstory_engine.errors import BackstoryError
from backstory_engine.sources import Source

ROW, SHARD, DAMAGE = "__row", "__shard", "__damage"  # columns that travel with the rows
SLOTS, SHARDS_MIN = 16384, 16
IN_FLIGHT = 2  # shards given to one actor: one is scored, one fetched; more of them end unevenly
RETRIES = 3  # of a shard whose actor died; a shard that kills every actor must not do so for ever


def here():
    return f"worker {os.getpid()} on node {ray.util.get_node_ip_address()}"


def open_engine(engine):
    """The engine of this process. Paths may hold variables of the node's environment ("$SCRATCH/store")."""
    paths = {name: os.path.expandvars(getattr(engine, name)) for name in ("store", "models")}
    try:
        return dataclasses.replace(engine, **paths).open()
    except BackstoryError as error:
        raise BackstoryError(error.code, f"{here()}: {error.message}") from None


@ray.remote(num_cpus=1, max_retries=RETRIES)
def describe(engine):
    with open_engine(engine) as scorer:
        return jobs.identity(scorer)


class Reader:
    """Reads one range of one file, and says which shard each row belongs to."""

    def __init__(self, columns, shards, skip):
        self.columns, self.shards, self.skip = columns, shards, np.array(sorted(skip), dtype=np.int32)

    def __call__(self, batch):
        path, first = batch["path"][0], int(batch["first"][0])
        source, names = Source(path), self.columns.read()
        tables = []
        for piece in source.pieces(int(batch["begin"][0]), int(batch["end"][0]), names):
            row = np.arange(first + piece.first, first + piece.first + piece.rows)
            if piece.error is None:
                table, shard = piece.table, self.shard_of(piece.table)
            else:  # nobody knows whose rows these are
                nulls = pa.nulls(piece.rows)
                table = pa.table({f.name: nulls.cast(f.type) for f in source.empty(names).schema})
                shard = np.full(piece.rows, row[0] % self.shards, dtype=np.int32)
            message = None if piece.error is None else piece.error.message
            table = (table.append_column(ROW, pa.array(row)).append_column(SHARD, pa.array(shard))
                     .append_column(DAMAGE, pa.repeat(pa.scalar(message, pa.string()), piece.rows)))
            tables.append(table.filter(pa.array(~np.isin(shard, self.skip))) if len(self.skip) else table)
        yield pa.concat_tables(tables)

    def shard_of(self, table):
        users = fields_of.rows_of(table, self.columns).select(["user"]).combine_chunks()
        slots = b"".join(_native.slots(batch) for batch in users.to_batches())
        return (np.frombuffer(slots, dtype=np.uint16).astype(np.int32) * self.shards) // SLOTS


class Worker:
    """An engine, and the shards it is given."""

    def __init__(self, job, expected):
        self.job, self.scorer = job, open_engine(job.engine)
        for key, value in jobs.identity(self.scorer).items():
            if value != expected[key]:
                raise BackstoryError("FAILED_PRECONDITION", f"{here()}: {key} is {value}, elsewhere {expected[key]}")

    def __call__(self, table):
        started = time.time()
        table = table.sort_by(ROW)
        shard = table.column(SHARD)[0].as_py()
        damage = table.column(DAMAGE)
        damaged = table.filter(damage.is_valid())
        bad = [(row, "", why) for row, why in zip(damaged.column(ROW).to_pylist(), damaged.column(DAMAGE).to_pylist())]
        table = table.filter(damage.is_null())
        scored, refused = self.scorer.score_columns(table, self.job.columns, row=table.column(ROW))
        scored, refused = jobs.without_bad(scored, refused)
        counts = self.job.folder.write(shard, scored, sorted(bad + refused))
        return pa.Table.from_pylist([{"shard": shard, "counts": dataclasses.asdict(counts), "started": started,
                                      "ended": time.time(), "worker": os.getpid()}])


def ranges(source, rows):
    """Ranges of about `rows` rows that end where files do: path, rows of it, and the input's index of its first row."""
    first, found = 0, []
    for path in source.paths:
        count = Source(path).rows if len(source.paths) > 1 else source.rows
        for begin in range(0, count, rows):
            found.append({"path": str(path), "begin": begin, "end": min(begin + rows, count), "first": first})
        first += count
    return found


def connect(flags):
    level = logging.WARNING if flags.verbose else logging.CRITICAL + 1
    wanted = flags.workers * max(flags.threads, 1) + 1  # one CPU more than the workers take, for reading and shuffling
    if flags.address:
        ray.init(address=flags.address, log_to_driver=flags.verbose, logging_level=level)
    else:  # a cluster of this machine alone
        ray.init(num_cpus=wanted, include_dashboard=False, log_to_driver=flags.verbose,
                 object_store_memory=flags.object_store_bytes, logging_level=level)
    there = int(ray.cluster_resources().get("CPU", 0))
    if there < wanted:
        raise BackstoryError("FAILED_PRECONDITION", f"--workers {flags.workers}: the cluster has {there} CPUs, wanted "
                                                    f"{wanted} (those of the workers, and one for reading)")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = flags.verbose


def pipeline(job, flags, shards, done, expected):
    """Lazy: one row of counts for every shard that was scored."""
    items = ranges(job.source, flags.rows_per_part)
    read = ray.data.from_items(items, override_num_blocks=len(items))
    reader = Reader(job.columns, shards, done)
    rows = read.map_batches(lambda batch: reader(batch), batch_size=1, batch_format="numpy", num_cpus=1)
    return rows.groupby(SHARD, num_partitions=shards).map_groups(
        Worker, fn_constructor_args=(job, expected), batch_format="pyarrow", num_cpus=max(flags.threads, 1),
        compute=ray.data.ActorPoolStrategy(size=flags.workers, max_tasks_in_flight_per_actor=IN_FLIGHT),
        max_restarts=RETRIES, max_task_retries=RETRIES)


@contextlib.contextmanager
def quiet_ray(verbose):
    """Keeps standard output for the summary, and what Ray says of restarts, with stack traces, for --verbose: what ends
    the job is told in one line."""
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.CRITICAL + 1)
    with open(os.devnull, "w", encoding="utf-8") as sink:
        with contextlib.redirect_stdout(sys.stderr if verbose else sink):
            with contextlib.redirect_stderr(sys.stderr if verbose else sink):
                yield


def main(flags) -> int:
    if flags.workers < 1:
        raise jobs.UsageError("--workers 0: wanted at least 1")
    job = jobs.Job(flags)
    if job.file is not None:
        raise jobs.UsageError(f"--output {flags.output}: wanted a folder; shards are its parts")
    started = time.monotonic()
    try:
        with quiet_ray(flags.verbose):
            try:
                connect(flags)
                counts, info = score(job, flags)
            except ray.exceptions.RayError as error:
                raise cause_of(error) from error
            finally:
                ray.shutdown()
        return jobs.finish(job, counts, time.monotonic() - started, info, flags.json)
    finally:
        job.folder.close()


def score(job, flags):
    """Scores what is not there yet. Returns the counts of every part, and what to say of the run."""
    shards = min(max(SHARDS_MIN, -(-job.source.rows // job.rows_per_part)), SLOTS)
    expected = ray.get(describe.remote(job.engine))
    job.folder.open(job.manifest(expected, shards=shards), job.resume)
    done = [shard for shard in range(shards) if job.folder.done(shard)]
    counts = {shard: job.folder.counts(shard) for shard in done}
    progress = jobs.Progress(job.source.rows, sum(c.rows for c in counts.values()))
    parts_now = []
    if progress.done < job.source.rows:
        for batch in pipeline(job, flags, shards, done, expected).iter_batches(batch_size=None, batch_format="pyarrow"):
            for part in batch.to_pylist():
                counts[part["shard"]] = parts.Counts(**part["counts"])
                parts_now.append(part)
                progress.set(progress.done + counts[part["shard"]].rows)
            jobs.check_bad(job, sum(c.bad for c in counts.values()))
    progress.clear()
    return counts.values(), {"model": expected["model"], "resumed_parts": len(done), "workers": flags.workers,
                             **rate(parts_now)}


def rate(timeline):
    """Seconds from the first shard's start to the last one's end, and rows a second once every worker has begun."""
    if not timeline:
        return {"scoring_seconds": 0.0, "rows_per_second": 0}
    first, last = min(part["started"] for part in timeline), max(part["ended"] for part in timeline)
    begun = {}
    for part in timeline:
        begun[part["worker"]] = min(begun.get(part["worker"], last), part["started"])
    all_up = max(begun.values())
    rows = sum(parts.Counts(**part["counts"]).rows * max(part["ended"] - max(part["started"], all_up), 0.0) /
               max(part["ended"] - part["started"], 1e-9) for part in timeline)
    return {"scoring_seconds": round(last - first, 3), "rows_per_second": round(rows / max(last - all_up, 1e-9))}


def cause_of(error):
    """The engine's own words, if there are any, below what Ray wraps around them."""
    seen = error
    while seen is not None:
        if isinstance(seen, BackstoryError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    # An actor that could not start leaves text only.
    if ours := re.search(r"backstory_engine\.errors\.\w+: ([A-Z_]+): (.*)", str(error)):
        return BackstoryError(ours[1], ours[2])
    return BackstoryError("UNAVAILABLE", f"Ray: {str(error).strip().splitlines()[-1]}")


def entry(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="score_job.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs.add_flags(parser)
    parser.set_defaults(threads=1)
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="actors, each with an engine (default 2)")
    parser.add_argument("--address", default="", metavar="A", help='of a Ray cluster, "auto": the one of this machine; '
                        "default: a cluster of this machine alone, for this job")
    parser.add_argument("--object-store-bytes", type=int, default=512 << 20, metavar="N", help="without --address")
    parser.add_argument("--verbose", action="store_true", help="what Ray says")
    return jobs.run(main, parser, argv)


if __name__ == "__main__":
    sys.exit(entry())
