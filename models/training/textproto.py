"""Protobuf text format, as far as configuration files need it: no generated code, no protobuf package.

A message is a list of (field name, value) pairs in file order; a value is a bool, int, float, str, an enum name (Enum)
or another message. Extensions, Any and angle brackets are refused.
"""
import re

_TOKEN = re.compile(r"""
    (?P<space>[\s,;]+|\#[^\n]*)
  | (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
  | (?P<number>-?(?:\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|inf|nan)f?(?![A-Za-z_]))
  | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<mark>[:{}\[\]])
""", re.VERBOSE)


class Enum(str):
    """The name of an enum value."""


def parse(text):
    """Returns the message. Raises ValueError naming the line."""
    tokens, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        line = text.count("\n", 0, position) + 1
        if not match:
            raise ValueError(f"line {line}: unexpected {text[position]!r}")
        if match.lastgroup != "space":
            tokens.append((match.lastgroup, match.group(), line))
        position = match.end()
    tokens.append(("end", "", text.count("\n") + 1))
    fields, at = _message(tokens, 0, "end")
    return fields


def _message(tokens, at, closing):
    fields = []
    while True:
        kind, name, line = tokens[at]
        if (closing == "end" and kind == "end") or (kind == "mark" and name == closing):
            return fields, at + 1
        if kind != "name":
            raise ValueError(f"line {line}: expected a field name, found {name!r}")
        at += 1
        colon = tokens[at][1] == ":"
        at += 1 if colon else 0
        if tokens[at][:2] == ("mark", "{"):
            value, at = _message(tokens, at + 1, "}")
            fields.append((name, value))
        elif colon and tokens[at][:2] == ("mark", "["):
            at += 1
            while tokens[at][:2] != ("mark", "]"):
                if tokens[at][:2] == ("mark", "{"):
                    value, at = _message(tokens, at + 1, "}")
                else:
                    value, at = _scalar(tokens, at)
                fields.append((name, value))
            at += 1
        elif colon:
            value, at = _scalar(tokens, at)
            fields.append((name, value))
        else:
            raise ValueError(f"line {line}: expected ':' or '{{' after {name}")


def _scalar(tokens, at):
    kind, text, line = tokens[at]
    if kind == "string":
        value = ""
        while tokens[at][0] == "string":
            value += tokens[at][1][1:-1].encode("latin-1", "backslashreplace").decode("unicode_escape")
            at += 1
        return value, at
    if kind == "number":
        try:
            return int(text), at + 1
        except ValueError:
            return float(text.rstrip("f") if "inf" not in text else text), at + 1
    if kind == "name":
        return {"true": True, "false": False}.get(text, Enum(text)), at + 1
    raise ValueError(f"line {line}: expected a value, found {text!r}")


def write(fields, indent=0):
    """The text of a message."""
    pad, lines = "  " * indent, []
    for name, value in fields:
        if isinstance(value, list):
            lines.append(f"{pad}{name} {{\n{write(value, indent + 1)}{pad}}}\n")
            continue
        if isinstance(value, bool):
            text = "true" if value else "false"
        elif isinstance(value, Enum):
            text = str(value)
        elif isinstance(value, str):
            text = '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
        else:
            text = repr(value)
        lines.append(f"{pad}{name}: {text}\n")
    return "".join(lines)
