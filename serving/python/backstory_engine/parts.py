"""An output folder: a manifest, parts that appear whole or not at all, and what is left to do after a kill.

    manifest.json, part-00000.parquet, bad-rows-00000.parquet (if any), ..., _SUCCESS (written last)

Every file is written aside, synced and renamed; bad rows before the part that they belong to. See
docs/reference/batch-scoring.md, Files.
"""
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from typing import Dict, Iterable, List, Sequence, Tuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from backstory_engine.errors import BackstoryError

BAD_SCHEMA = pa.schema([("row", pa.int64()), ("column", pa.string()), ("reason", pa.string())])
FORMATS = {"parquet": ".parquet", "arrow": ".arrow"}
SUCCESS, MANIFEST = "_SUCCESS", "manifest.json"


def fingerprint(path: pathlib.Path) -> Dict[str, object]:
    """Size and BLAKE2b of a file: what a resumed run compares."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return {"file": path.name, "bytes": path.stat().st_size, "blake2b": digest.hexdigest()}


def publish(path: pathlib.Path, write) -> None:
    """Makes `path` appear whole: write(aside), sync, rename, sync of the folder."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        code = "RESOURCE_EXHAUSTED" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "UNAVAILABLE"
        raise BackstoryError(code, f"{path}: {error.strerror or error}; --resume goes on from here") from error
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_table(path: pathlib.Path, tables: Iterable[pa.Table], schema: pa.Schema, format: str) -> None:
    """One file of these tables, each a row group (a record batch)."""
    if format == "arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            for table in tables:
                writer.write_table(table)
        return
    # Scores hardly repeat: looking for a dictionary of them costs a tenth of the writing and finds none.
    dictionary = [f.name for f in schema if not pa.types.is_floating(f.type) and f.name != "row"]
    with pq.ParquetWriter(path, schema, use_dictionary=dictionary, write_page_checksum=True, compression="zstd",
                          compression_level=1) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=max(table.num_rows, 1))


def read_table(path: pathlib.Path, columns=None) -> pa.Table:
    if path.suffix == ".parquet":
        return pq.ParquetFile(path, page_checksum_verification=True).read(columns, use_threads=False)
    with pa.OSFile(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
        return table if columns is None else table.select(columns)


@dataclasses.dataclass(frozen=True)
class Counts:
    """Rows of a part, or of all."""
    scored: int = 0
    bad: int = 0
    unknown_users: int = 0
    unknown_items: int = 0

    @property
    def rows(self) -> int:
        return self.scored + self.bad

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other))))


def counts_of(scored: pa.Table, bad: int) -> Counts:
    unknown = (pc.sum(scored.column(name)).as_py() or 0 for name in ("unknown_user", "unknown_item"))
    return Counts(scored.num_rows, bad, *unknown)


class OutputFolder:
    """The folder of one run, held by one process. Writers of single parts need not hold it (parts are idempotent)."""

    def __init__(self, path, format: str):
        self.path, self.format = pathlib.Path(path), format
        self._lock = None

    def __getstate__(self):  # a copy in another process holds no lock
        return {**self.__dict__, "_lock": None}

    def open(self, manifest: Dict[str, object], resume: bool) -> None:
        """Takes the folder for a run that `manifest` describes. Refuses one in use, one with another run's parts, and,
        unless `resume`, one that holds anything."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise BackstoryError("FAILED_PRECONDITION", f"{self.path}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BackstoryError("FAILED_PRECONDITION", f"{self.path}: another run is writing here") from None
        for aside in self.path.glob(".*.tmp"):
            aside.unlink(missing_ok=True)
        present = self.path / MANIFEST
        if present.exists():
            if not resume:
                raise BackstoryError("FAILED_PRECONDITION", f"{self.path}: holds a run already; go on with it "
                                                            "(--resume), remove it, or name another folder")
            _compare(json.loads(present.read_text(encoding="utf-8")), json.loads(_text(manifest)), str(self.path))
        elif any(self.path.iterdir()):
            raise BackstoryError("FAILED_PRECONDITION", f"{self.path}: not empty, and no run of this command")
        else:
            self.write_text(MANIFEST, _text(manifest))

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def part(self, number: int) -> pathlib.Path:
        return self.path / f"part-{number:05d}{FORMATS[self.format]}"

    def bad_rows(self, number: int) -> pathlib.Path:
        return self.path / f"bad-rows-{number:05d}{FORMATS[self.format]}"

    def done(self, number: int) -> bool:
        return self.part(number).exists()

    @property
    def finished(self) -> bool:
        return (self.path / SUCCESS).exists()

    def write(self, number: int, scored: pa.Table, bad: Sequence[Tuple[int, str, str]]) -> Counts:
        """Publishes part `number`; writing it again changes nothing."""
        if bad:
            columns = [list(column) for column in zip(*bad)]
            table = pa.table(columns, schema=BAD_SCHEMA)
            publish(self.bad_rows(number), lambda aside: write_table(aside, [table], BAD_SCHEMA, self.format))
        publish(self.part(number), lambda aside: write_table(aside, [scored], scored.schema, self.format))
        return counts_of(scored, len(bad))

    def write_text(self, name: str, text: str) -> None:
        publish(self.path / name, lambda aside: aside.write_text(text, encoding="utf-8"))

    def succeed(self, summary: Dict[str, object]) -> None:
        self.write_text(SUCCESS, _text(summary))

    def summary(self) -> Dict[str, object]:
        return json.loads((self.path / SUCCESS).read_text(encoding="utf-8"))

    def counts(self, number: int) -> Counts:
        """Of a part that is there."""
        bad = self.bad_rows(number)
        flags = read_table(self.part(number), ["unknown_user", "unknown_item"])
        return counts_of(flags, _rows(bad) if bad.exists() else 0)

    def join(self, parts: int, file: pathlib.Path) -> List[pathlib.Path]:
        """Puts the parts together into `file` (and its bad rows beside it), then removes the folder."""
        written = []
        bad = [self.bad_rows(n) for n in range(parts) if self.bad_rows(n).exists()]
        for target, sources in ((file.with_name(f"{file.name}.bad-rows{file.suffix}"), bad),
                                (file, [self.part(n) for n in range(parts)])):
            if not sources:
                target.unlink(missing_ok=True)  # of an earlier run
                continue
            schema = read_table(sources[0]).schema
            publish(target, lambda aside: write_table(aside, map(read_table, sources), schema, self.format))
            written.append(target)
        gone = self.path.with_name(f".{self.path.name}.done")
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(self.path, gone)  # at once: what a kill leaves behind is in nobody's way
        self.close()
        shutil.rmtree(gone)
        return written


def _rows(path):
    return pq.read_metadata(path).num_rows if path.suffix == ".parquet" else read_table(path).num_rows


def _text(value):
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def _compare(old, new, where):
    """Names the first thing that decides scores or rows and has changed."""
    for key in sorted(set(old) | set(new)):
        if old.get(key) != new.get(key):
            was, now = json.dumps(old.get(key)), json.dumps(new.get(key))
            raise BackstoryError("FAILED_PRECONDITION", f"{where}: cannot go on: {key} was {was}, now {now}")
