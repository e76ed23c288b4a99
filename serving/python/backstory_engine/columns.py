"""Columns of a table -> fields of a row (docs/reference/batch-scoring.md), in the few types that the engine takes.

A column of such a type is passed on as it is, without a copy; others are cast, and what cannot be cast exactly is an
InputError that names column, field and type.
"""
import dataclasses
from typing import Dict, List, Mapping, Optional, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from backstory_engine.errors import DamagedInputError, InputError

USER, ID, TIME, TEXT, NUMBER = "user", "id", "time", "text", "number"
FIELDS = {"user": USER, "item_id": ID, "time_us": TIME, "as_of_us": TIME, "known_by_us": TIME, "namespace": TEXT,
          "scene": TEXT, "request_id": ID}
REQUIRED = ("user", "item_id", "time_us")
PREFIXES = {"request_numbers": NUMBER, "request_texts": TEXT, "candidate_numbers": NUMBER, "candidate_texts": TEXT}
SHORT = {"user_id": "user", "item": "item_id", "time": "time_us", "as_of": "as_of_us", "known_by": "known_by_us"}
INT64_MAX = 2**63 - 1
US_PER_UNIT = {"s": 1_000_000, "ms": 1_000, "us": 1}
_WANTED = {USER: "text or a whole number", ID: "a whole number or text", TIME: "a whole number or a timestamp",
           TEXT: "text", NUMBER: "a number"}


def kind_of(field: str) -> Optional[str]:
    """USER, ID, ... of a field, or None if there is no such field."""
    prefix, dot, name = field.partition(".")
    return FIELDS.get(field) or (PREFIXES.get(prefix) if dot and name else None)


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which column of a table is which field.

    sources: field -> column, for those that the table has; defaults: field -> value where it is absent or empty.
    """
    sources: Mapping[str, str]
    defaults: Mapping[str, str] = dataclasses.field(default_factory=dict)
    time_unit: str = "us"
    keep: Sequence[str] = ()

    def read(self) -> List[str]:
        """Every top-level column that has to be read, once."""
        return list(dict.fromkeys([*self.sources.values(), *self.keep]))


def resolve(schema: pa.Schema, fields: Mapping[str, str] = {}, defaults: Mapping[str, str] = {}, time_unit: str = "us",
            keep: Sequence[str] = ()) -> Columns:
    """Finds every field in the columns of `schema`: where `fields` says, else by its own or its short name."""
    if time_unit not in US_PER_UNIT:
        raise InputError(f"time unit {time_unit!r}: wanted s, ms or us")
    names = _flat_names(schema)
    sources: Dict[str, str] = {}
    for given, column in fields.items():
        field = SHORT.get(given, given)
        if kind_of(field) is None:
            raise InputError(f"field {given!r}: there is no such field")
        _check_there(names, column, f"field {field}")
        sources[field] = column
    for column in names:
        field = SHORT.get(column, column)
        if field not in sources and kind_of(field) is not None and column not in fields.values():
            _check_there(names, column, f"field {field}")
            sources[field] = column
    short = {SHORT.get(name, name): value for name, value in defaults.items()}
    for field in short:
        if kind_of(field) is None:
            raise InputError(f"default of {field!r}: there is no such field")
    for field in REQUIRED:
        if field not in sources and field not in short:
            there = ", ".join(sorted(set(names))[:20]) or "none"
            raise InputError(f"column {field!r}: not in the table, which has {there}")
    for column in keep:
        _check_there(names, column, "to keep")
    return Columns(sources, short, time_unit, tuple(keep))


def _flat_names(schema):
    """Columns with the members of the feature structs (candidate_numbers: {bid: ..}) as candidate_numbers.bid."""
    names = []
    for column in schema:
        if column.name in PREFIXES and pa.types.is_struct(column.type):
            names += [f"{column.name}.{column.type.field(i).name}" for i in range(column.type.num_fields)]
        else:
            names.append(column.name)
    return names


def _check_there(names, column, what):
    if names.count(column) != 1:
        problem = "given twice" if column in names else "not in the table"
        raise InputError(f"column {column!r} ({what}): {problem}")


def flatten(table: pa.Table) -> pa.Table:
    """Feature structs as one column per member, so that every name is that of _flat_names."""
    for index in reversed(range(table.num_columns)):
        name, column = table.column_names[index], table.column(index)
        if name in PREFIXES and pa.types.is_struct(column.type):
            table = table.remove_column(index)
            for member, values in reversed(list(zip(column.type, column.flatten()))):
                table = table.add_column(index, f"{name}.{member.name}", values)
    return table


def check_types(schema: pa.Schema, columns: Columns, where: str) -> None:
    """Refuses a column of a wrong type before any row is read."""
    try:
        rows_of(flatten(schema.empty_table()), columns)
    except InputError as error:
        raise InputError(f"{where}: {error.message}") from error


def rows_of(table: pa.Table, columns: Columns) -> pa.Table:
    """The fields of a checked() table, each by its name and in a type that the engine takes."""
    arrays = {}
    for field, name in columns.sources.items():
        arrays[field] = _engine_type(table.column(name), field, name, columns.time_unit)
    for field, value in columns.defaults.items():
        arrays[field] = _with_default(arrays.get(field), field, value, columns.time_unit, table.num_rows)
    return pa.table(arrays)


def checked(table: pa.Table, names: Sequence[str], where: str = "table") -> pa.Table:
    """The columns `names` (as resolve() names them) of a table, flattened, once every byte that the engine will trust
    is known to be right: offsets, UTF-8, lengths."""
    table = table.select(top_level(table.schema, names))
    for name, column in zip(table.column_names, table.columns):
        try:
            column.validate(full=True)
        except (pa.ArrowException, ValueError) as error:
            raise DamagedInputError(f"{where}: column {name!r}: {error}") from error
    return flatten(table).select(list(names))


def top_level(schema: pa.Schema, names: Sequence[str]) -> List[str]:
    """The columns of `schema` that hold `names`: a member of a feature struct is held by its struct."""
    there = set(schema.names)
    return list(dict.fromkeys(name if name in there else name.split(".")[0] for name in names))


def _engine_type(column, field, name, time_unit):
    kind, given = kind_of(field), column.type
    try:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        column = _CAST[kind](column, time_unit)
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise InputError(f"column {name!r} (field {field}): {error}") from error
    if column is None:
        raise InputError(f"column {name!r} (field {field}): type {given}; wanted {_WANTED[kind]}")
    return column


def _whole(column):
    if pa.types.is_unsigned_integer(column.type):
        return column.cast(pa.uint64())
    return column.cast(pa.int64()) if pa.types.is_integer(column.type) else None


def _text(column, _unit=None):
    if pa.types.is_null(column.type) or pa.types.is_string_view(column.type):
        return column.cast(pa.large_string())
    return column if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) else None


def _user(column, _unit=None):
    text = _text(column)
    return _whole(column) if text is None else text


def _time(column, unit):
    """Microseconds. What does not fit becomes the nearest number that does: the engine refuses its row only."""
    if pa.types.is_timestamp(column.type):
        unit, column = column.type.unit, column.cast(pa.int64())
    if pa.types.is_null(column.type):
        return column.cast(pa.int64())
    if not pa.types.is_integer(column.type):
        return None
    if column.type == pa.uint64():
        column = pc.min_element_wise(column, pa.scalar(INT64_MAX, pa.uint64()), skip_nulls=False)
    column = column.cast(pa.int64())
    if unit == "ns":  # cut: an event is visible before a time, so that this can only hide, by less than 1 us
        return pc.divide(column, 1000)
    factor = US_PER_UNIT[unit]
    if factor == 1:
        return column
    for clip, limit in ((pc.min_element_wise, INT64_MAX // factor), (pc.max_element_wise, -(INT64_MAX // factor))):
        column = clip(column, pa.scalar(limit, pa.int64()), skip_nulls=False)
    return pc.multiply(column, factor)


def _number(column, _unit=None):
    kind = column.type
    if kind in (pa.float64(), pa.float32(), pa.int64(), pa.int32()):
        return column
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind) or kind == pa.uint64() or pa.types.is_null(kind):
        return column.cast(pa.float64(), safe=False)
    return column.cast(pa.int64()) if pa.types.is_integer(kind) or pa.types.is_boolean(kind) else None


_CAST = {USER: _user, ID: _user, TIME: _time, TEXT: _text, NUMBER: _number}


def _with_default(column, field, text, time_unit, rows):
    """`column` with `text` where it is null or empty; the whole column if there is none."""
    kind = kind_of(field)
    try:
        target = column.type if column is not None else {TIME: pa.int64(), NUMBER: pa.float64()}.get(kind, pa.string())
        value = int(text) * US_PER_UNIT[time_unit] if kind == TIME else text
        scalar = pa.scalar(value).cast(target)
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise InputError(f"default of {field}: {text!r} is not {_WANTED[kind]}") from error
    if column is None:
        return pa.repeat(scalar, rows)
    if kind != TIME and (pa.types.is_string(target) or pa.types.is_large_string(target)):
        column = pc.if_else(pc.equal(column, pa.scalar("", target)), pa.scalar(None, target), column)
    return pc.fill_null(column, scalar)
