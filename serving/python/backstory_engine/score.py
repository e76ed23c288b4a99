"""Scores a Parquet or Arrow file: python -m backstory_engine.score --help, docs/reference/batch-scoring.md."""
import argparse
import concurrent.futures
import itertools
import sys
import threading
import time

from backstory_engine import job as jobs

IN_WORK = 2  # parts at once: one is read or written while the engine scores the other

EXAMPLES = """
examples:
  python -m backstory_engine.score --store checkpoint --models models/zoo --input rows.parquet --output scores.parquet
  python -m backstory_engine.score --store checkpoint --models models/zoo --namespace movielens --input rows.parquet \\
      --map user=userId,item_id=movieId,time_us=timestamp --time-unit s --keep rating --output scores/ --resume

exit codes: 0 every row scored, 1 finished with bad rows or failed, 2 usage, 4 store or model damaged, 130 interrupted
"""


def main(flags) -> int:
    job = jobs.Job(flags)
    started = time.monotonic()
    with job.engine.open() as scorer:
        job.folder.open(job.manifest(jobs.identity(scorer), rows_per_part=job.rows_per_part), job.resume)
        try:
            counts, resumed = score_parts(job, scorer)
            info = {"model": scorer.model_version, "resumed_parts": resumed}
            return jobs.finish(job, counts, time.monotonic() - started, info, flags.json)
        finally:
            job.folder.close()


class Stopped(Exception):
    """Ends a call of the engine whose result nobody wants any more."""


def score_parts(job: jobs.Job, scorer):
    """Scores what is not there yet. Returns the counts of every part, and how many were there."""
    count = max(-(-job.source.rows // job.rows_per_part), 1)  # no rows make one empty part, so that columns are known
    counts = {number: job.folder.counts(number) for number in range(count) if job.folder.done(number)}
    resumed, left = len(counts), iter(sorted(set(range(count)) - set(counts)))
    progress = jobs.Progress(job.source.rows, sum(c.rows for c in counts.values()))
    stop, running = threading.Event(), {}  # part -> rows of it that are done

    def one(number):
        def heard(rows):
            if stop.is_set():
                raise Stopped
            running[number] = rows
        begin = number * job.rows_per_part
        scored, bad = job.score(scorer, begin, min(begin + job.rows_per_part, job.source.rows), heard)
        return number, job.folder.write(number, scored, bad), bad

    with concurrent.futures.ThreadPoolExecutor(IN_WORK) as pool:
        try:
            waiting = {pool.submit(one, number) for number in itertools.islice(left, IN_WORK)}
            while waiting:
                done, waiting = concurrent.futures.wait(waiting, 0.2, concurrent.futures.FIRST_COMPLETED)
                for number, counts_of_part, bad in (part.result() for part in done):
                    if bad:
                        progress.clear()
                        jobs.complain(job, bad, sum(c.bad for c in counts.values()))
                    running.pop(number, None)
                    counts[number] = counts_of_part
                    jobs.check_bad(job, sum(c.bad for c in counts.values()))
                    waiting |= {pool.submit(one, number) for number in itertools.islice(left, 1)}
                progress.set(sum(c.rows for c in counts.values()) + sum(list(running.values())))
        finally:
            stop.set()
            progress.clear()
    return [counts[number] for number in range(count)], resumed


def entry(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m backstory_engine.score", description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs.add_flags(parser)
    return jobs.run(main, parser, argv)


if __name__ == "__main__":
    sys.exit(entry())
