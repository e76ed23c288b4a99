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
        count = max(-(-job.source.rows // job.rows_per_part), 1)
        job.folder.open(job.manifest(jobs.identity(scorer), rows_per_part=job.rows_per_part), job.resume)
        try:
            done = [number for number in range(count) if job.folder.done(number)]
            counts = {number: job.folder.counts(number) for number in done}
            bad = sum(c[1] for c in counts.values())
            progress = jobs.Progress(job.source.rows, sum(map(sum, counts.values())))
            for number in sorted(set(range(count)) - set(done)):
                begin = number * job.rows_per_part
                end = min(begin + job.rows_per_part, job.source.rows)
                scored, refused, damage = job.score(scorer, begin, end)
                for message in damage:
                    print(f"backstory: {message}", file=sys.stderr)
                bad += len(refused)
                jobs.check_bad(job, bad)
                job.folder.write(number, scored, refused)
                counts[number] = (scored.num_rows, len(refused))
                progress.add(end - begin)
            info = {"model": scorer.model_version, "model_hash": scorer.engine.content_hash}
            return jobs.finish(job, [counts[n] for n in range(count)], time.monotonic() - started, len(done), info,
                               flags.json)
        finally:
            job.folder.close()


def entry(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m backstory_engine.score", description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs.add_flags(parser)
    return jobs.run(main, parser, argv)


if __name__ == "__main__":
    sys.exit(entry())
