"""The configuration of a GRAB version: message GrabModel of proto/backstory/model/v1/model.proto, as Python objects.

The trainer reads and writes the fields the network depends on; everything the tokenizer alone needs is kept as it was
read, because tokens are made by `backstory tokenize` and nothing else.
"""
import dataclasses

from models.training import textproto

# Field -> default, in the order of the proto.
_SIZES = {
    "d": 64, "heads": 4, "d_head": 16, "layers": 2, "latent": 0, "ffn": 128, "n_pos": 256, "n_time": 64, "n_act": 16,
    "window_rows": 1_000_000_000, "window_sec": 1_000_000_000_000,
}
_MORE_SIZES = {"embedding": 16, "gate_mlp_hidden": 128, "head_hidden": 64}


@dataclasses.dataclass
class SparseField:
    name: str
    table: str
    vocab: int


@dataclasses.dataclass
class Config:
    """One GRAB architecture. `tokenizer` is the parsed Tokenizer message; partial, full, dense are its field lists."""
    name: str = "grab"
    tokenizer: list = dataclasses.field(default_factory=list)
    partial: list = dataclasses.field(default_factory=list)
    full: list = dataclasses.field(default_factory=list)
    dense: list = dataclasses.field(default_factory=list)
    channels: int = 1
    open_rows: str = "AS_KNOWN"
    d: int = 64
    heads: int = 4
    d_head: int = 16
    layers: int = 2
    latent: int = 0
    ffn: int = 128
    n_pos: int = 256
    n_time: int = 64
    n_act: int = 16
    window_rows: int = 1_000_000_000
    window_sec: int = 1_000_000_000_000
    norm: str = "post"
    target_mixing: bool = True
    embedding: int = 16
    gate_mlp_hidden: int = 128
    head_hidden: int = 64
    tasks: tuple = ("like",)

    def fields(self, view):
        """Sparse fields of view "p" or "f", in column order."""
        return self.partial if view == "p" else self.full

    def width(self, view):
        """Width of the token vector v of a view."""
        return len(self.fields(view)) * self.embedding + (len(self.dense) if view == "f" else 0)


def from_text(text):
    """Parses model.textproto. Raises ValueError naming the field."""
    config, seen, tasks = Config(), set(), []
    for name, value in textproto.parse(text):
        if name == "tasks":
            tasks.append(value)
            continue
        if name in seen:
            raise ValueError(f"model.textproto: field {name} is given twice")
        seen.add(name)
        if name == "tokenizer":
            _read_tokenizer(value, config)
        elif name == "norm":
            config.norm = "pre" if value == "PRE" else "post"
        elif name in _SIZES or name in _MORE_SIZES or name in ("name", "target_mixing"):
            setattr(config, name, value)
        else:
            raise ValueError(f"model.textproto: unknown field {name}")
    if tasks:
        config.tasks = tuple(tasks)
    return config


def _read_tokenizer(fields, config):
    config.tokenizer = fields
    for name, value in fields:
        if name in ("partial", "full"):
            entry = dict(value)
            getattr(config, name).append(SparseField(entry["name"], entry["table"], entry["vocab"]))
        elif name == "full_dense":
            config.dense.append(dict(value)["name"])
        elif name == "open_rows":
            config.open_rows = str(value)
    config.channels = sum(1 for name, _ in fields if name == "channels")
    for view in ("partial", "full"):
        names = [field.name for field in getattr(config, view)]
        if len(set(names)) != len(names):
            raise ValueError(f"tokenizer.{view}: two fields share a name")


def to_text(config):
    """model.textproto of a configuration; every size is written, so that no default can change its meaning."""
    fields = [("name", config.name), ("tokenizer", config.tokenizer)]
    fields += [(name, getattr(config, name)) for name in _SIZES]
    fields += [("norm", textproto.Enum(config.norm.upper())), ("target_mixing", config.target_mixing)]
    fields += [(name, getattr(config, name)) for name in _MORE_SIZES]
    fields += [("tasks", task) for task in config.tasks]
    return textproto.write(fields)


def select_fields(config, drop):
    """A copy without the tokenizer fields named in `drop` ("p.item", "f.user", "dense.rate", "channel.all")."""
    kept = []
    for name, value in config.tokenizer:
        prefix = {"partial": "p.", "full": "f.", "full_dense": "dense.", "channels": "channel."}.get(name)
        if prefix is None or prefix + dict(value)["name"] not in drop:
            kept.append((name, value))
    result = dataclasses.replace(config, partial=[], full=[], dense=[])
    _read_tokenizer(kept, result)
    return result


def weight_shapes(config):
    """Names and shapes of every tensor of the weight file."""
    shapes = {}
    for view in ("p", "f"):
        for field in config.fields(view):
            shapes[f"tok.table.{field.table}"] = (field.vocab, config.embedding)
        width, hidden = config.width(view), config.gate_mlp_hidden
        shapes.update({
            f"tok.{view}.ln.g": (width,), f"tok.{view}.ln.b": (width,),
            f"tok.{view}.w1": (width, hidden), f"tok.{view}.b1": (hidden,),
            f"tok.{view}.w2": (hidden, config.d), f"tok.{view}.b2": (config.d,),
            f"tok.{view}.wg": (width, config.d), f"tok.{view}.bg": (config.d,),
        })
    shapes.update(layer_shapes(config))
    return shapes


def layer_shapes(config):
    """The tensors after the tokenizer."""
    shapes, d, wide = {}, config.d, config.heads * config.d_head
    for layer in range(config.layers):
        if config.target_mixing:
            shapes[f"w.l{layer}.gate.w"] = (config.channels * d, config.channels)
            shapes[f"w.l{layer}.gate.b"] = (config.channels,)
        for c in range(config.channels):
            prefix = f"w.l{layer}.c{c}"
            inner = d
            if config.latent > 0:
                inner = config.latent
                shapes[f"{prefix}.wd"] = (d, inner)
            shapes.update({
                f"{prefix}.wq": (inner, wide), f"{prefix}.wk": (inner, wide), f"{prefix}.wv": (inner, wide),
                f"{prefix}.wo": (wide, d), f"{prefix}.w1": (d, config.ffn), f"{prefix}.b1": (config.ffn,),
                f"{prefix}.w2": (config.ffn, d), f"{prefix}.b2": (d,),
                f"{prefix}.n1.g": (d,), f"{prefix}.n1.b": (d,), f"{prefix}.n2.g": (d,), f"{prefix}.n2.b": (d,),
                f"{prefix}.bpos": (config.n_pos, config.d_head), f"{prefix}.btime": (config.n_time, config.d_head),
                f"{prefix}.bact": (config.n_act, config.d_head),
            })
    shapes.update({
        "w.head.w1": (config.channels * d, config.head_hidden), "w.head.b1": (config.head_hidden,),
        "w.head.w2": (config.head_hidden, len(config.tasks)), "w.head.b2": (len(config.tasks),),
    })
    return shapes
