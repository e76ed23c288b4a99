"""Tables of (user, item) rows -> rank requests and back. Works on anything with named columns: a pandas or pyarrow
table, or a dict of lists."""
from typing import Dict, Iterator, List, Sequence, Tuple

from backstory import wire
from backstory.types import to_us

CANDIDATES_MAX = 10_000


class TableError(ValueError):
    """A column that is missing, or a row whose value cannot be used: names the column and the row."""


def column(table, name) -> Sequence:
    try:
        values = table[name]
    except (KeyError, IndexError, ValueError) as error:
        raise TableError(f"column {name!r}: not in the table") from error
    if hasattr(values, "to_pylist"):
        return values.to_pylist()
    return values.tolist() if hasattr(values, "tolist") else list(values)


def groups(users: Sequence, times: Sequence) -> Iterator[Tuple[object, object, List[int]]]:
    """Rows of one user and time are candidates of one request; at most CANDIDATES_MAX of them."""
    rows: Dict[Tuple[object, object], List[int]] = {}
    for row, key in enumerate(zip(users, times)):
        rows.setdefault(key, []).append(row)
    for (user, time), members in rows.items():
        for begin in range(0, len(members), CANDIDATES_MAX):
            yield user, time, members[begin:begin + CANDIDATES_MAX]


def with_column(table, name, values):
    """A copy of `table` with one more column: pandas, pyarrow, or a dict."""
    if hasattr(table, "assign"):
        return table.assign(**{name: values})
    if hasattr(table, "append_column"):
        return table.append_column(name, [values])
    return {**table, name: values}


def requests(table, namespace, *, user, item, time=None, number_columns=(), text_columns=(), **options):
    """Yields (rows, RankRequest) for every group of the table."""
    users, items = column(table, user), column(table, item)
    times = column(table, time) if time else [None] * len(users)
    columns = {name: column(table, name) for name in (*number_columns, *text_columns)}
    if not len(users) == len(items) == len(times):
        raise TableError(f"columns {user!r}, {item!r} and {time!r} differ in length")
    for who, when, rows in groups(users, times):
        try:
            # 0 would mean the server's clock: a row that has lost its time must not see its own future.
            if time and to_us(when) == 0:
                raise ValueError(f"column {time!r}: a time after 1970 is needed, got {when!r}")
            request = wire.rank_request(
                namespace, who, [items[row] for row in rows], now=when, criticality="batch",
                columns={name: [values[row] for row in rows] for name, values in columns.items()}, **options)
        except (TypeError, ValueError) as error:
            raise TableError(f"row {rows[0]}: {error}") from error
        yield rows, request
