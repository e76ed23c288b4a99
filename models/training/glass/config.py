"""The configuration of a GLASS version: message GlassModel of glass.proto, as Python objects."""
import dataclasses

from models.training import textproto

SCALARS = {
    "d": 96, "heads": 6, "d_kv": 32, "ffn": 1024, "encoder_layers": 4, "decoder_layers": 4, "relative_buckets": 32,
    "relative_distance_max": 128, "vocabulary": 0, "short_items": 50, "long_items": 0, "retrieved_items": 30,
    "neighbours": 0, "neighbour_below": 8, "beam": 20, "first_step_epsilon": 0.0, "embedding_width": 128,
}
COMPAT_EDGES = (-1.0, -0.1, 0.0, 0.1, 1.0)
PAPER_EDGES = tuple(round(-1 + 0.1 * i, 1) for i in range(21))
# What a profile decides for every field that the file leaves out.
PROFILES = {
    "COMPAT": {"tokens": "STRIDED", "tier_edges": COMPAT_EDGES, "tier_similarity": "DOT", "tier_position": "FIRST",
               "gate_input": "STATE", "first_step_epsilon": 1e-9, "vocabulary": 1000},
    "PAPER": {"tokens": "DENSE", "tier_edges": PAPER_EDGES, "tier_similarity": "COSINE", "tier_position": "LAST",
              "gate_input": "MEMORY"},
}
_ENUMS = {"tokens": ("STRIDED", "DENSE"), "tier_similarity": ("DOT", "COSINE"), "tier_position": ("FIRST", "LAST"),
          "gate_input": ("STATE", "MEMORY"), "profile": tuple(PROFILES)}


@dataclasses.dataclass
class Config:
    """One GLASS architecture. levels are the codebook sizes; history the rules that make an event a behaviour.

    No tier edges = no SID-Tier token; retrieved_items 0 = no search. Both together is the plain backbone (TIGER).
    """
    name: str = "glass"
    profile: str = "COMPAT"
    d: int = 96
    heads: int = 6
    d_kv: int = 32
    ffn: int = 1024
    encoder_layers: int = 4
    decoder_layers: int = 4
    relative_buckets: int = 32
    relative_distance_max: int = 128
    levels: tuple = (64, 128, 128)
    tokens: str = "STRIDED"
    vocabulary: int = 1000
    short_items: int = 50
    long_items: int = 0
    retrieved_items: int = 30
    neighbours: int = 0
    neighbour_below: int = 8
    tier_edges: tuple = COMPAT_EDGES
    tier_similarity: str = "DOT"
    tier_position: str = "FIRST"
    gate_input: str = "STATE"
    beam: int = 20
    first_step_epsilon: float = 1e-9
    embedding_width: int = 128
    sid_version: str = ""
    embedding_space: str = ""
    history: list = dataclasses.field(default_factory=list)
    quantiser: list = dataclasses.field(default_factory=list)

    @property
    def bins(self):
        return max(0, len(self.tier_edges) - 1)

    @property
    def stride(self):
        return max(self.levels)

    def offset(self, level):
        """Token of code 0 of a level (0, 1, 2)."""
        return 1 + (level * self.stride if self.tokens == "STRIDED" else sum(self.levels[:level]))

    @property
    def bos(self):
        return 3 * self.stride if self.tokens == "STRIDED" else sum(self.levels) + 1


def make(profile="COMPAT", **fields):
    """A configuration with the profile's values for what `fields` leaves out."""
    config = dataclasses.replace(Config(profile=profile), **{**_profile(profile), **fields})
    if not config.vocabulary:
        # Unused rows cost nothing, and tensor cores like multiples of 8.
        config.vocabulary = -(-(config.bos + 1) // 8) * 8
    validate(config)
    return config


def _profile(profile):
    if profile not in PROFILES:
        raise ValueError(f"model.textproto: profile {profile}, expected one of {', '.join(PROFILES)}")
    return {"vocabulary": 0, "first_step_epsilon": 0.0, **PROFILES[profile]}


def validate(config):
    """Raises ValueError naming the first field that is out of range."""

    def check(good, field, rule):
        if not good:
            raise ValueError(f"model.textproto: field {field} is {getattr(config, field, None)}, must be {rule}")

    limits = {"d": 4096, "heads": 64, "d_kv": 512, "ffn": 16384, "encoder_layers": 64, "decoder_layers": 64,
              "short_items": 1024, "beam": 1024, "embedding_width": 4096, "relative_distance_max": 65536}
    for field, limit in limits.items():
        check(1 <= getattr(config, field) <= limit, field, f"1..{limit}")
    check(config.relative_buckets % 4 == 0 and 4 <= config.relative_buckets <= 1024, "relative_buckets",
          "a multiple of 4 in 4..1024")
    check(config.relative_distance_max > config.relative_buckets // 4, "relative_distance_max",
          "more than relative_buckets / 4")
    check(len(config.levels) == 3 and all(2 <= size <= 65535 for size in config.levels), "levels", "three of 2..65535")
    check(config.vocabulary > config.bos, "vocabulary", f"more than the last token {config.bos}")
    check(0 <= config.retrieved_items <= 1024, "retrieved_items", "0..1024")
    check(config.long_items >= 0, "long_items", ">= 0")
    check(0 <= config.neighbours <= min(16, config.levels[0] - 1), "neighbours", "0..16, less than levels[0]")
    edges = config.tier_edges
    check(not edges or (2 <= len(edges) <= 257 and all(a < b for a, b in zip(edges, edges[1:]))), "tier_edges",
          "none, or 2..257 rising numbers")
    check(len(config.embedding_space.encode("utf-8")) <= 64, "embedding_space", "at most 64 bytes")
    for field, values in _ENUMS.items():
        check(getattr(config, field) in values, field, " or ".join(values))


def from_text(text):
    """Parses model.textproto. Raises ValueError naming the field."""
    fields, lists, seen = {}, {"levels": [], "tier_edges": [], "history": []}, set()
    for name, value in textproto.parse(text):
        if name in lists:
            lists[name].append(value)
            continue
        if name in seen:
            raise ValueError(f"model.textproto: field {name} is given twice")
        seen.add(name)
        if name in SCALARS or name in ("name", "sid_version", "embedding_space", "quantiser", "without_tier"):
            fields[name] = value
        elif name in _ENUMS:
            fields[name] = str(value)
        else:
            raise ValueError(f"model.textproto: unknown field {name}")
    for name in ("levels", "tier_edges"):
        if lists[name]:
            fields[name] = tuple(lists[name])
    fields["history"] = lists["history"]
    if fields.pop("without_tier", False):
        fields["tier_edges"] = ()
    return make(fields.pop("profile", "COMPAT"), **fields)


def to_text(config):
    """model.textproto; every value is written, so that no default can change its meaning."""
    fields = [("name", config.name), ("profile", textproto.Enum(config.profile))]
    fields += [("levels", size) for size in config.levels]
    fields += [(name, getattr(config, name)) for name in SCALARS]
    fields += [(name, textproto.Enum(getattr(config, name))) for name in _ENUMS if name != "profile"]
    fields += [("tier_edges", float(edge)) for edge in config.tier_edges]
    fields += [] if config.tier_edges else [("without_tier", True)]
    fields += [("sid_version", config.sid_version)] if config.sid_version else []
    fields += [("embedding_space", config.embedding_space)] if config.embedding_space else []
    fields += [("history", rule) for rule in config.history]
    fields += [("quantiser", config.quantiser)] if config.quantiser else []
    return textproto.write(fields)


def weight_shapes(config):
    """Names and shapes of every tensor of the weight file; matrices are [out, in]."""
    d, inner, ffn = config.d, config.heads * config.d_kv, config.ffn
    shapes = {"token_embedding": (config.vocabulary, d), "enc.final_norm": (d,), "dec.final_norm": (d,)}
    if config.tier_edges:
        shapes.update({"tier.w1": (d, config.levels[0] * config.bins), "tier.b1": (d,), "tier.w2": (d, d),
                       "tier.b2": (d,)})
    attention = {"q": (inner, d), "k": (inner, d), "v": (inner, d), "o": (d, inner)}
    for stack, layers in (("enc", config.encoder_layers), ("dec", config.decoder_layers)):
        shapes[f"{stack}.0.self.rel_bias"] = (config.relative_buckets, config.heads)
        for i in range(layers):
            prefix = f"{stack}.{i}"
            shapes.update({f"{prefix}.self.norm": (d,), f"{prefix}.ffn.norm": (d,), f"{prefix}.ffn.w1": (ffn, d),
                           f"{prefix}.ffn.w2": (d, ffn)})
            shapes.update({f"{prefix}.self.{name}": shape for name, shape in attention.items()})
            if stack == "dec":
                shapes[f"{prefix}.cross.norm"] = (d,)
                shapes.update({f"{prefix}.memory.{name}": shape for name, shape in attention.items()})
            if stack == "dec" and config.retrieved_items:
                shapes.update({f"{prefix}.retrieved.{name}": shape for name, shape in attention.items()})
                shapes.update({f"{prefix}.gate.w": (d, 2 * d), f"{prefix}.gate.b": (d,)})
    if config.retrieved_items:
        shapes.update({"retrieved.w": (d, d), "retrieved.b": (d,)})
    return shapes
