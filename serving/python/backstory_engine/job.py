"""A scoring job as flags describe it: what `backstory_engine.score` and deploy/ray share."""
import argparse
import dataclasses
import json
import os
import pathlib
import sys
import threading
import time
from typing import Dict, Iterable, List, Mapping, Tuple

import numpy as np
import pyarrow as pa

from backstory_engine import _native, columns as fields_of, parts
from backstory_engine.errors import BackstoryError, DamagedInputError, InputError
from backstory_engine.scorer import BadRow, Scorer
from backstory_engine.sources import Source

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_DAMAGED, EXIT_INTERRUPTED = 0, 1, 2, 4, 130
COMPLAINTS_MAX = 10
OUTPUT = ("row", "user", "item_id", "time_us", "rows_visible", "unknown_user", "unknown_item")


class UsageError(Exception):
    """A flag is wrong: exit code 2."""


@dataclasses.dataclass(frozen=True)
class Engine:
    """What every process of a job opens for itself."""
    store: str
    models: str
    model: str = ""
    version: str = ""
    label: str = ""
    threads: int = 0
    cache_bytes: int = 1 << 30
    namespace: str = "default"
    scene: str = ""
    parameters: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def open(self) -> Scorer:
        return Scorer(**{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Those of docs/reference/batch-scoring.md."""
    add = parser.add_argument
    add("--store", required=True, metavar="DIR", help="opened read-only: a checkpoint, or a store no server has open")
    add("--models", required=True, metavar="DIR", help="model repository")
    add("--model", default="", metavar="NAME", help="default: the only one there")
    add("--version", default="", metavar="V")
    add("--label", default="", metavar="L", help="default: stable, else the newest version")
    add("--input", required=True, metavar="PATH", help="a Parquet or Arrow IPC file, or a folder of them")
    add("--output", required=True, metavar="PATH", help="a file ending in .parquet or .arrow, else a folder")
    add("--format", choices=sorted(parts.FORMATS), help="default: that of --output's name, else parquet")
    add("--map", default=[], action="append", metavar="FIELD=COLUMN,...", help="where a field is, if not by its name")
    add("--default", default=[], action="append", metavar="FIELD=VALUE,...", help="where a column is absent or empty")
    add("--time-unit", default="us", choices=sorted(fields_of.US_PER_UNIT), help="of times that are whole numbers")
    add("--namespace", default="default", metavar="NS")
    add("--scene", default="", metavar="S")
    add("--keep", default=[], action="append", metavar="COLUMN,...", help="input columns to copy to the output")
    add("--set", default=[], action="append", metavar="NAME=VALUE", help="a parameter; repeatable")
    add("--threads", type=_count, default=0, metavar="N", help="0: one per core")
    add("--cache-bytes", type=_count, default=1 << 30, metavar="N", help="memory for user states (default 1 GiB)")
    add("--rows-per-part", type=_count, default=100_000, metavar="N", help="what a killed run loses at most (100000)")
    add("--resume", action="store_true", help="go on with what a killed run left")
    add("--max-bad-rows", type=_count, metavar="N", help="more end the run; default: go on, and exit with 1")
    add("--json", action="store_true", help="print the summary as one JSON object")


def _count(text):
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


_count.__name__ = "whole number"


def _pairs(texts, flag, split=True):
    pairs: Dict[str, str] = {}
    for text in (part for given in texts for part in (given.split(",") if split else [given])):
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"{flag} {text!r}: wanted NAME=VALUE")
        if name in pairs:
            raise UsageError(f"{flag} {name}: given twice")
        pairs[name] = value
    return pairs


class Job:
    """Input, engine and output of one run. Opening checks everything that can be checked before a row is scored."""

    def __init__(self, flags: argparse.Namespace):
        if flags.rows_per_part < 1:
            raise UsageError("--rows-per-part 0: wanted at least 1")
        self.engine = Engine(flags.store, flags.models, flags.model, flags.version, flags.label, flags.threads,
                             flags.cache_bytes, flags.namespace, flags.scene, _pairs(flags.set, "--set", split=False))
        self.rows_per_part, self.max_bad_rows, self.resume = flags.rows_per_part, flags.max_bad_rows, flags.resume
        options = {"fields": _pairs(flags.map, "--map"), "defaults": _pairs(flags.default, "--default"),
                   "time_unit": flags.time_unit,
                   "keep": [name for text in flags.keep for name in text.split(",") if name]}
        self.source, self._scoring = Source(flags.input), threading.Lock()
        try:
            self.columns = self.source.resolve(**options)
        except InputError as error:
            raise UsageError(error.message) from error
        for name in options["keep"]:
            if name in OUTPUT or name.startswith(("calibrated.", "raw_logit.")):
                raise UsageError(f"--keep {name!r}: the output has a column of that name")
        if flags.version and flags.label:
            raise UsageError("--version and --label: wanted one of the two")
        output = pathlib.Path(flags.output)
        format_of = {suffix: name for name, suffix in parts.FORMATS.items()}
        self.file = output if output.suffix in format_of else None
        format = flags.format or format_of.get(output.suffix, "parquet")
        if self.file is not None and format_of[output.suffix] != format:
            raise UsageError(f"--format {format}: {output} says {format_of[output.suffix]}")
        self.folder = parts.OutputFolder(output.with_name(output.name + ".parts") if self.file else output, format)

    def __getstate__(self):  # what workers of other processes need
        return {**self.__dict__, "source": None, "_scoring": None}

    def manifest(self, identity: Mapping[str, object], **more) -> Dict[str, object]:
        """All that decides scores and rows; threads, cache and number of workers do not."""
        engine, columns = self.engine, self.columns
        return {"format": self.folder.format, "engine": _native.VERSION, "rows": self.source.rows,
                "input": [parts.fingerprint(path) for path in self.source.paths],
                "columns": {"fields": dict(columns.sources), "defaults": dict(columns.defaults),
                            "time_unit": columns.time_unit, "keep": list(columns.keep)},
                "namespace": engine.namespace, "scene": engine.scene, **identity, **more}

    def score(self, scorer: Scorer, begin: int, end: int, progress=None) -> Tuple[pa.Table, List[BadRow]]:
        """Rows [begin, end) of the input: what was scored, and what could not be. Of a damaged row group all rows are
        bad."""
        names, good, numbers, bad = self.columns.read(), [], [], []
        for piece in self.source.read(begin, end, names):
            if piece.error is None:
                good.append(piece.table)
                numbers.append(np.arange(piece.first, piece.first + piece.rows))
            else:
                bad += [(row, "", piece.error.message) for row in range(piece.first, piece.first + piece.rows)]
        table = pa.concat_tables(good) if good else self.source.empty(names)
        rows = pa.chunked_array([pa.array(part) for part in numbers], pa.int64())
        with self._scoring:  # two calls at once measured slower than one after the other
            scored, refused = scorer.score_columns(table, self.columns, row=rows, progress=progress)
        scored, refused = without_bad(scored, refused)
        return scored, sorted(bad + refused)


def identity(scorer: Scorer) -> Dict[str, object]:
    """What must be the same in every process of a job, or scores would differ."""
    native = scorer.engine
    return {"model": scorer.model_version, "model_hash": native.content_hash, "calibration": native.config_version,
            "store": {"users": native.store_users, "events": native.store_events, "items": native.store_items},
            "parameters": native.parameters}


def without_bad(scored, bad: List[BadRow]):
    """Only the rows that were scored, and the bad ones by their `row`."""
    if not bad:
        return scored, bad
    there = np.ones(scored.num_rows, dtype=bool)
    places = [place for place, _, _ in bad]
    there[places] = False
    rows = scored.column("row").take(pa.array(places)).to_pylist()
    return scored.filter(pa.array(there)), [(row, column, reason) for row, (_, column, reason) in zip(rows, bad)]


class Progress:
    """A bar on a terminal, nothing elsewhere."""

    def __init__(self, rows: int, done: int = 0):
        self.rows, self.done, self.started, self.before = rows, done, time.monotonic(), done
        self.stream = sys.__stderr__
        self.shown = 0.0 if self.stream.isatty() else None

    def clear(self) -> None:
        if self.shown is not None:
            print("\r\x1b[K", end="", file=self.stream, flush=True)

    def set(self, done: int) -> None:
        self.done = done
        now = time.monotonic()
        if self.shown is None or (now - self.shown < 0.2 and self.done < self.rows):
            return
        self.shown = now
        rate = (self.done - self.before) / max(now - self.started, 1e-9)
        filled = 30 * self.done // max(self.rows, 1)
        left = f"{(self.rows - self.done) / rate:.0f} s left" if rate > 0 else ""
        print(f"\r[{'#' * filled}{'.' * (30 - filled)}] {self.done:,} of {self.rows:,} rows, {rate:,.0f}/s {left} ",
              end="", file=self.stream, flush=True)


def complain(job: Job, bad: List[BadRow], before: int) -> None:
    """The first few bad rows of a run, on stderr."""
    for row, column, reason in bad[:max(COMPLAINTS_MAX - before, 0)]:
        print(f"backstory: row {row}: {f'{column}: ' if column else ''}{reason}", file=sys.stderr)


def finish(job: Job, counts: Iterable[parts.Counts], seconds: float, info: Dict[str, object], as_json: bool) -> int:
    """Writes the summary, puts an output file together, and says how it went. Returns the exit code. `info`: what is
    known of the run besides what it wrote."""
    counts = list(counts)
    all = sum(counts, parts.Counts())
    if all.rows != job.source.rows:
        raise BackstoryError("INTERNAL", f"{job.folder.path}: {all.rows} rows instead of {job.source.rows}")
    summary = {"rows": all.rows, "scored": all.scored, "bad_rows": all.bad, "unknown_users": all.unknown_users,
               "unknown_items": all.unknown_items, "parts": len(counts), "model": info["model"]}
    job.folder.succeed(summary)
    if job.file is not None:
        job.folder.join(len(counts), job.file)
    where = str(job.file or job.folder.path)
    if as_json:
        print(json.dumps({**summary, **info, "seconds": round(seconds, 3), "output": where}))
    else:
        print(f"{all.scored} rows scored with {info['model']} in {seconds:.1f} s; {all.bad} bad rows; "
              f"{all.unknown_users} of unknown users, {all.unknown_items} of unknown items; {where}")
    if all.bad > (job.max_bad_rows or 0):
        print(f"backstory: {all.bad} bad rows, listed in bad-rows files beside the scores", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK


def check_bad(job: Job, bad: int) -> None:
    if job.max_bad_rows is not None and bad > job.max_bad_rows:
        raise BackstoryError("FAILED_PRECONDITION", f"{bad} bad rows; --max-bad-rows {job.max_bad_rows}")


def run(main, parser: argparse.ArgumentParser, argv=None) -> int:
    """main(flags) with errors as messages and exit codes."""
    flags = parser.parse_args(argv)
    try:
        return main(flags)
    except UsageError as error:
        print(f"backstory: {error}", file=sys.stderr)
        return EXIT_USAGE
    except BackstoryError as error:
        print(f"backstory: {error}", file=sys.stderr)
        return EXIT_DAMAGED if error.code == "DATA_LOSS" and not isinstance(error, DamagedInputError) else EXIT_FAILED
    except KeyboardInterrupt:
        print("backstory: interrupted; go on with --resume", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os._exit(EXIT_FAILED)
