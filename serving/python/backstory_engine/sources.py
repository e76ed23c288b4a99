"""Inputs: Parquet and Arrow IPC files (or a folder of them) as one long table that is read by ranges of rows.

Everything read is checked before it is used, and every error names the file, the row group and the column.
"""
import bisect
import dataclasses
import pathlib
import threading
from typing import Iterator, List, Optional, Sequence, Tuple

import pyarrow as pa
import pyarrow.parquet as pq

from backstory_engine import columns as fields_of
from backstory_engine.errors import BackstoryError, DamagedInputError, InputError

PARQUET, ARROW = (".parquet", ".pq"), (".arrow", ".arrows", ".feather", ".ipc")
_UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError, IndexError, MemoryError, OverflowError)


@dataclasses.dataclass(frozen=True)
class Piece:
    """Rows [first, first + rows) of a source: either the table, or why it cannot be read."""
    first: int
    rows: int
    table: Optional[pa.Table]
    error: Optional[DamagedInputError]


class _File:
    """One file: groups of rows that are read whole. Keeps the group that was read last."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._last: Tuple[int, Tuple[str, ...], Optional[pa.Table]] = (-1, (), None)

    def read_group(self, group: int, names: Sequence[str]) -> pa.Table:
        if self._last[0] != group or self._last[1] != tuple(names):
            try:
                table = self._read(group, names)
            except _UNREADABLE as error:
                raise self._damage(group, names, error) from error
            if table.num_rows != self.starts[group + 1] - self.starts[group]:
                raise DamagedInputError(f"{self.where(group)}: {table.num_rows} rows instead of the "
                                        f"{self.starts[group + 1] - self.starts[group]} it declares")
            self._last = (group, tuple(names), fields_of.checked(table, names, self.where(group)))
        return self._last[2]

    def _damage(self, group, names, error):
        """Reads column by column to name the one that is damaged."""
        for name in names:
            try:
                self._read(group, [name])
            except _UNREADABLE as one:
                return DamagedInputError(f"{self.where(group)}: column {name!r}: {one}")
        return DamagedInputError(f"{self.where(group)}: {error}")

    def where(self, group):
        return f"{self.path} {self.unit} {group}"


class _ParquetFile(_File):
    unit = "row group"

    def __init__(self, path):
        super().__init__(path)
        self._file = pq.ParquetFile(path, page_checksum_verification=True)
        self.schema = self._file.schema_arrow
        metadata = self._file.metadata
        self.starts = _starts(metadata.row_group(g).num_rows for g in range(metadata.num_row_groups))

    def _read(self, group, names):
        return self._file.read_row_group(group, columns=fields_of.top_level(self.schema, names), use_threads=False)


class _ArrowFile(_File):
    unit = "record batch"

    def __init__(self, path):
        super().__init__(path)
        self._handle = pa.OSFile(str(path))
        self._reader = pa.ipc.open_file(self._handle)
        self.schema = self._reader.schema
        self.starts = _starts(self._reader.get_batch(g).num_rows for g in range(self._reader.num_record_batches))

    def _read(self, group, names):
        return pa.Table.from_batches([self._reader.get_batch(group)]).select(fields_of.top_level(self.schema, names))


class _ArrowStream(_File):
    """The streaming format knows no places: batches are kept as they come, once."""
    unit = "record batch"

    def __init__(self, path):
        super().__init__(path)
        with pa.OSFile(str(path)) as handle:
            reader = pa.ipc.open_stream(handle)
            self.schema, self._batches = reader.schema, list(reader)
        self.starts = _starts(batch.num_rows for batch in self._batches)

    def _read(self, group, names):
        return pa.Table.from_batches([self._batches[group]]).select(fields_of.top_level(self.schema, names))


def _starts(sizes):
    starts = [0]
    for size in sizes:
        if size < 0:
            raise ValueError(f"a row group of {size} rows")
        starts.append(starts[-1] + size)
    return starts


def _open(path):
    try:
        with path.open("rb") as head:
            arrow = _ArrowFile if head.read(6) == b"ARROW1" else _ArrowStream
        file = _ParquetFile(path) if path.suffix in PARQUET else arrow(path)
        list(file.schema.names)  # those that are no UTF-8 fail here
        return file
    except FileNotFoundError as error:
        raise BackstoryError("NOT_FOUND", f"{path}: no such file") from error
    except PermissionError as error:
        raise BackstoryError("PERMISSION_DENIED", f"{path}: not readable") from error
    except _UNREADABLE as error:
        kind = "Parquet" if path.suffix in PARQUET else "Arrow IPC"
        raise DamagedInputError(f"{path}: not a readable {kind} file: {error}") from error


def files_of(path) -> List[pathlib.Path]:
    """The file itself, or the Parquet and Arrow files of a folder in order of their names."""
    path = pathlib.Path(path)
    if not path.is_dir():
        if path.suffix not in PARQUET + ARROW:
            raise InputError(f"{path}: wanted {', '.join(PARQUET + ARROW)} or a folder of such files")
        if not path.exists():
            raise BackstoryError("NOT_FOUND", f"{path}: no such file")
        return [path]
    files = sorted(f for f in path.iterdir() if f.suffix in PARQUET + ARROW and f.name[0] not in "._")
    if not files:
        raise InputError(f"{path}: holds no {', '.join(PARQUET + ARROW)} file")
    return files


class Source:
    """The rows of all files, one after the other. Only read() may be called by several threads at once."""

    def __init__(self, path):
        self.paths = files_of(path)
        self._schemas, self._sizes = [], []
        for file in map(_open, self.paths):  # each is closed again: a folder may hold more files than may be open
            self._schemas.append(file.schema)
            self._sizes.append(file.starts[-1])
        self.schema = self._schemas[0]
        self._open: Tuple[int, Optional[_File]] = (-1, None)
        self._starts = _starts(self._sizes)
        self.rows = self._starts[-1]
        self._lock = threading.Lock()

    def resolve(self, **options) -> fields_of.Columns:
        """The columns that are read, the same in every file."""
        columns = None
        for path, schema in zip(self.paths, self._schemas):
            try:
                found = fields_of.resolve(schema, **options)
            except InputError as error:
                raise InputError(f"{path}: {error.message}") from error
            if columns is not None and found != columns:
                raise InputError(f"{path}: other columns than {self.paths[0]}")
            columns = found
            for name in fields_of.top_level(schema, found.read()):
                if schema.field(name).type != self.schema.field(name).type:
                    raise InputError(f"{path}: column {name!r}: type {schema.field(name).type}, in {self.paths[0]} "
                                     f"{self.schema.field(name).type}")
        fields_of.check_types(self.schema, columns, str(self.paths[0]))
        return columns

    def empty(self, names: Sequence[str]) -> pa.Table:
        return fields_of.flatten(self.schema.empty_table()).select(list(names))

    def read(self, begin: int, end: int, names: Sequence[str]) -> List[Piece]:
        """Rows [begin, end) of these columns, as pieces() of one thread at a time."""
        with self._lock:
            return list(self.pieces(begin, end, names))

    def pieces(self, begin: int, end: int, names: Sequence[str]) -> Iterator[Piece]:
        """Rows [begin, end) of these columns (flattened), one piece for each row group that the range touches."""
        number = bisect.bisect_right(self._starts, begin) - 1
        while begin < end and number < len(self.paths):
            file, start = self._file(number), self._starts[number]
            stop = min(end, self._starts[number + 1])
            group = max(bisect.bisect_right(file.starts, begin - start) - 1, 0)
            while begin < stop:
                until = min(stop, start + file.starts[group + 1])
                if until > begin:
                    yield _piece(file, group, begin - start, until - start, start, names)
                    begin = until
                group += 1
            number += 1

    def _file(self, number):
        if self._open[0] != number:
            file = _open(self.paths[number])
            if file.schema != self._schemas[number] or file.starts[-1] != self._sizes[number]:
                raise DamagedInputError(f"{file.path}: has changed since the run began")
            self._open = (number, file)
        return self._open[1]


def _piece(file, group, begin, end, start, names):
    try:
        table = file.read_group(group, names).slice(begin - file.starts[group], end - begin)
        return Piece(start + begin, end - begin, table, None)
    except DamagedInputError as error:
        return Piece(start + begin, end - begin, None, error)
