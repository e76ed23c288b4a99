"""Safetensors files in numpy: the exchange format of token shards and weights.

The layout: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the raw
little-endian data without holes. `__metadata__` in the header maps strings to strings. numpy has no bfloat16: BF16 tensors
are read as float32, which holds every value exactly, and never written.
"""
import json
import os
import struct

import numpy as np

_HEADER_BYTES_MAX = 100_000_000
_DTYPES = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"), "U8": np.dtype("u1"),
    "U16": np.dtype("<u2"), "U32": np.dtype("<u4"), "U64": np.dtype("<u8"), "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_BF16 = "BF16"


def read_tensors(path):
    """Returns ({name: array}, {metadata}). Raises ValueError naming the file and what is wrong with it."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        raw = file.read(8)
        if len(raw) != 8:
            raise ValueError(f"{path}: shorter than the 8 bytes of the header length")
        header_bytes = struct.unpack("<Q", raw)[0]
        if header_bytes > min(_HEADER_BYTES_MAX, size - 8):
            raise ValueError(f"{path}: header of {header_bytes} bytes does not fit into the file")
        header = json.loads(file.read(header_bytes).decode("utf-8"))
        metadata = header.pop("__metadata__", {})
        base = 8 + header_bytes
        data = np.memmap(path, dtype="u1", mode="r", offset=base) if size > base else np.zeros(0, "u1")
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES and entry["dtype"] != _BF16:
            raise ValueError(f"{path}: tensor {name} has unknown dtype {entry['dtype']}")
        dtype = _DTYPES["U16" if entry["dtype"] == _BF16 else entry["dtype"]]
        begin, end = entry["data_offsets"]
        count = int(np.prod(entry["shape"], dtype=np.int64))
        if not 0 <= begin <= end <= data.size or end - begin != count * dtype.itemsize:
            raise ValueError(f"{path}: tensor {name} has offsets [{begin}, {end}) outside the file or not of its shape")
        array = np.frombuffer(data[begin:end].tobytes(), dtype=dtype).reshape(entry["shape"])
        tensors[name] = (array.astype("<u4") << 16).view("<f4") if entry["dtype"] == _BF16 else array
    return tensors, metadata


def write_tensors(path, tensors, metadata=None):
    """Writes `tensors` in the order of their names, through a temporary file and a rename."""
    header, chunks, offset = {}, [], 0
    if metadata:
        header["__metadata__"] = dict(metadata)
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        array = array.reshape(tensors[name].shape)  # ascontiguousarray turns a scalar into [1]
        dtype = array.dtype.newbyteorder("<") if array.dtype.byteorder == ">" else array.dtype
        if dtype not in _NAMES:
            raise ValueError(f"tensor {name}: dtype {dtype} cannot be written")
        data = array.astype(dtype, copy=False).tobytes()
        header[name] = {"dtype": _NAMES[dtype], "shape": list(array.shape),
                        "data_offsets": [offset, offset + len(data)]}
        chunks.append(data)
        offset += len(data)
    text = json.dumps(header, separators=(",", ":"), sort_keys=True).encode("utf-8")
    text += b" " * (-len(text) % 8)
    temporary = f"{path}.tmp"
    with open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for chunk in chunks:
            file.write(chunk)
    os.replace(temporary, path)
