"""Scores a Parquet or Arrow file: python -m backstory_engine.score --help, docs/reference/batch-scoring.md."""
import argparse
import sys
import time

from backstory_engine import job as jobs

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


def score_parts(job: jobs.Job, scorer):
    """Scores what is not there yet. Returns the counts of every part, and how many were there."""
    count = max(-(-job.source.rows // job.rows_per_part), 1)  # no rows make one empty part, so that columns are known
    done = {number: job.folder.counts(number) for number in range(count) if job.folder.done(number)}
    counts = dict(done)
    progress = jobs.Progress(job.source.rows, sum(c.rows for c in done.values()))
    try:
        for number in sorted(set(range(count)) - set(done)):
            begin = number * job.rows_per_part
            before, bad_before = progress.done, sum(c.bad for c in counts.values())
            scored, bad = job.score(scorer, begin, min(begin + job.rows_per_part, job.source.rows),
                                    lambda rows, before=before: progress.set(before + rows))
            if bad and bad_before < jobs.COMPLAINTS_MAX:
                progress.clear()
                jobs.complain(job, bad, bad_before)
            counts[number] = job.folder.write(number, scored, bad)
            progress.set(before + counts[number].rows)
            jobs.check_bad(job, bad_before + len(bad))
    finally:
        progress.clear()
    return [counts[number] for number in range(count)], len(done)


def entry(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m backstory_engine.score", description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs.add_flags(parser)
    return jobs.run(main, parser, argv)


if __name__ == "__main__":
    sys.exit(entry())
