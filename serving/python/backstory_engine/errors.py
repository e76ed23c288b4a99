"""What can go wrong, as exceptions. Every message names the file, the column or the row, and the limit."""


class BackstoryError(Exception):
    """The engine refused or could not answer. code: a status name ("NOT_FOUND", "DATA_LOSS", ...)."""

    def __init__(self, code: str, message: str):
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message

    def __reduce__(self):  # crosses process borders (Ray)
        return (type(self), (self.code, self.message))


class InputError(BackstoryError, ValueError):
    """A table that cannot be scored as a whole: a column is missing, of a wrong type, or given twice."""

    def __init__(self, message: str):
        super().__init__("INVALID_ARGUMENT", message)

    def __reduce__(self):
        return (type(self), (self.message,))


class DamagedInputError(BackstoryError):
    """A file that is not what its name says, or whose bytes have changed: names file, row group and column."""

    def __init__(self, message: str):
        super().__init__("DATA_LOSS", message)

    def __reduce__(self):
        return (type(self), (self.message,))


class BadRowsError(BackstoryError, ValueError):
    """Rows that cannot be scored, from Scorer.score. rows: (row, column, reason) of each."""

    def __init__(self, rows):
        row, column, reason = rows[0]
        more = f", and {len(rows) - 1} more" if len(rows) > 1 else ""
        super().__init__("INVALID_ARGUMENT", f"row {row}: {column}: {reason}{more}")
        self.rows = rows

    def __reduce__(self):
        return (type(self), (self.rows,))
