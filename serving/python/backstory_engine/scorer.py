"""Scores tables in this process: Arrow in, Arrow out, over the same C++ core as the server."""
import threading
from typing import Callable, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from backstory_engine import _native, columns as fields_of
from backstory_engine.errors import BackstoryError, BadRowsError, InputError

_UNKNOWN_USER, _UNKNOWN_ITEM = 2, 4  # bits of `flags`, serving/engine/batch/batch_rows.h
BadRow = Tuple[int, str, str]  # row, column, reason


class Scorer:
    """An engine over a store, opened read-only, and one model version. Thread-safe; several may share one store.

    store: a checkpoint, or a store that no server has open. models: the model repository. model, version, label: which
    version scores; by default the only model there, label "stable", else the newest version. threads: 0 = one per core.
    cache_bytes: memory for user states. parameters: {name: value}, any scope (docs/reference/parameters.md).

    Raises BackstoryError: NOT_FOUND (store, model, version), FAILED_PRECONDITION (a server has the store open),
    DATA_LOSS (damage; names the file and the next command), INVALID_ARGUMENT (names the parameter).
    """

    def __init__(self, store: str, models: str, *, model: str = "", version: str = "", label: str = "",
                 threads: int = 1, cache_bytes: int = 1 << 30, namespace: str = "default", scene: str = "",
                 parameters: Mapping[str, object] = {}):
        self._native: Optional[_native.Scorer] = _call(
            _native.Scorer, store=str(store), models=str(models), model=model, version=version, label=label,
            threads=threads, cache_bytes=cache_bytes, namespace=namespace, scene=scene,
            parameters={name: _parameter(value) for name, value in parameters.items()})
        self._lock = threading.Lock()

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.close()

    def close(self) -> None:
        """Frees store, model and user states once calls that are running have ended. Later calls raise ValueError."""
        with self._lock:
            self._native = None

    @property
    def engine(self):
        with self._lock:
            if self._native is None:
                raise ValueError("the scorer is closed")
            return self._native

    @property
    def model_version(self) -> str:
        """MODEL/VERSION."""
        return f"{self.engine.model}/{self.engine.version}"

    @property
    def tasks(self) -> List[str]:
        return self.engine.tasks

    def stats(self) -> Mapping[str, int]:
        """Counts of the cache of user states."""
        return self.engine.stats()

    def score(self, table, *, fields: Mapping[str, str] = {}, defaults: Mapping[str, object] = {},
              time_unit: str = "us", keep: Sequence[str] = (), bad_rows: str = "raise") -> pa.Table:
        """Scores every row of a pyarrow Table or RecordBatch (or anything that pyarrow.table takes) as of its own time.

        Returns the output columns of docs/reference/batch-scoring.md in row order. Columns are fields by their names,
        or as `fields` {field: column} says. bad_rows: "raise" a BadRowsError, or "null": their scores are null. Numbers
        are not copied on their way in, nor scores on their way out.
        """
        if bad_rows not in ("raise", "null"):
            raise ValueError(f'bad_rows={bad_rows!r}: wanted "raise" or "null"')
        table = _as_table(table)
        texts = {name: str(value) for name, value in defaults.items()}
        columns = fields_of.resolve(table.schema, fields, texts, time_unit, keep)
        scored, bad = self.score_columns(fields_of.checked(table, columns.read()), columns)
        if bad and bad_rows == "raise":
            raise BadRowsError(bad)
        return scored

    def score_columns(self, table: pa.Table, columns: fields_of.Columns, first_row: int = 0,
                      row: Optional[pa.ChunkedArray] = None, progress: Optional[Callable[[int], None]] = None
                      ) -> Tuple[pa.Table, List[BadRow]]:
        """As score(), of a table that is checked, with the bad rows (by their place in `table`) beside.

        The column `row` counts from `first_row`, or is `row`. `progress` hears now and then how many rows are done.
        """
        rows = fields_of.rows_of(table, columns)
        engine, bad, batches = self.engine, [], []
        done = 0
        for batch in rows.combine_chunks().to_batches():
            tell = None if progress is None else lambda rows, before=done: progress(before + rows)
            result = _call(engine.score, batch, tell)
            bad += [(done + at, column, reason) for at, column, reason in result.bad]
            batches.append(pa.record_batch(result))
            done += batch.num_rows
        scores = pa.Table.from_batches(batches) if batches else _no_scores(engine.tasks)
        return _output(table, rows, columns, scores, first_row, row), bad


def _output(table, rows, columns, scores, first_row, row):
    """The columns of docs/reference/batch-scoring.md."""
    out = {"row": pa.array(np.arange(first_row, first_row + table.num_rows)) if row is None else row}
    for field in ("user", "item_id"):
        plain = field in columns.sources and field not in columns.defaults
        out[field] = table.column(columns.sources[field]) if plain else rows.column(field)
    out["time_us"] = rows.column("time_us")
    for name in scores.column_names:
        if name != "flags":
            out[name] = scores.column(name)
    flags = scores.column("flags")
    for name, bit in (("unknown_user", _UNKNOWN_USER), ("unknown_item", _UNKNOWN_ITEM)):
        out[name] = pc.not_equal(pc.bit_wise_and(flags, pa.scalar(bit, pa.uint8())), pa.scalar(0, pa.uint8()))
    for name in columns.keep:
        if name in out:
            raise InputError(f"column {name!r} (to keep): the output has a column of that name")
        out[name] = table.column(name)
    return pa.table(out)


def _no_scores(tasks):
    floats = [(f"{kind}.{task}", pa.float32()) for task in tasks for kind in ("calibrated", "raw_logit")]
    return pa.schema([*floats, ("flags", pa.uint8()), ("rows_visible", pa.uint32())]).empty_table()


def _as_table(table):
    if isinstance(table, pa.Table):
        return table
    if isinstance(table, pa.RecordBatch):
        return pa.Table.from_batches([table])
    return pa.table(table)


def _parameter(value):
    return str(value).lower() if isinstance(value, bool) else str(value)


def _call(function, *args, **kwargs):
    try:
        return function(*args, **kwargs)
    except _native.Error as error:
        raise BackstoryError(*error.args) from None
