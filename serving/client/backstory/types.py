"""What goes in and what comes out, as plain Python values. Times are microseconds since the Unix epoch."""
import dataclasses
import datetime
import operator
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

UserId = Union[str, int]
Time = Union[int, datetime.datetime]


class BackstoryError(Exception):
    """The server refused or could not answer.

    code: the gRPC status name ("INVALID_ARGUMENT"); message: names the field and the limit, the model, or the quota.
    retry_after_ms: how long the server asks to wait, or None.
    """

    def __init__(self, code: str, message: str, retry_after_ms: Optional[int] = None):
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.retry_after_ms = code, message, retry_after_ms


class NotServedError(BackstoryError):
    """The server does not serve this method: code UNIMPLEMENTED. Asking again will not help; another server may."""


@dataclasses.dataclass(frozen=True)
class Model:
    """Which model version answers; empty: the server's default. Give a version or a label, not both."""
    name: str = ""
    version: str = ""
    label: str = ""


@dataclasses.dataclass(frozen=True)
class Event:
    """An exposure (item shown) or, with `action`, something the user did. Limits are in history.proto."""
    event_id: int
    time_us: Time
    item_id: int
    action: Union[str, int, None] = None  # "click", "rating", ... or 1000..65535
    value: float = 0.0
    exposure_id: int = 0
    request_id: int = 0
    position: int = 0
    scene: str = ""
    context: Mapping[str, str] = dataclasses.field(default_factory=dict)
    revision: int = 0
    tombstone: bool = False


@dataclasses.dataclass(frozen=True)
class Item:
    item_id: int
    title: str = ""
    categories: Sequence[str] = ()
    year: int = 0
    text: str = ""
    sid: Sequence[int] = ()
    numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    strings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    embedding: Sequence[float] = ()  # generative models give the item a semantic ID by it
    embedding_space: str = ""  # what the embedding is of, e.g. the encoder's name


@dataclasses.dataclass(frozen=True)
class CacheReport:
    """What it took to have the user's state: source is hit, extend, truncate, rebuild, uncached or empty."""
    source: str
    tier: str
    rows_reused: int
    rows_computed: int
    rows_loaded: int
    state_bytes: int


@dataclasses.dataclass(frozen=True)
class Explained:
    """A past event that a candidate attended to; mass is its share of attention in its channel."""
    channel: int
    event_id: int
    time_us: int
    item_id: int
    mass: float


class Exposure(NamedTuple):
    """An experiment arm that the request was exposed to. unit: what was hashed ("user", "device", "session"). reason:
    why this arm ("assigned", "targeted", "holdout", "override"; overrides count in no analysis)."""
    layer: str
    experiment: str
    arm: str
    unit: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """An item. log_probability is that of its semantic ID `sid`; score is what the order follows; probabilities[task] is
    the ranking's, if it was ranked. explanation: the behaviours of the long history that steered it, with their share of
    attention; search_gate: how far they counted, 0..1 (both when asked)."""
    item_id: int
    log_probability: float
    sid: List[int]
    score: float
    probabilities: Dict[str, float]
    explanation: List[Explained]
    search_gate: float


@dataclasses.dataclass(frozen=True)
class RecommendResult:
    """Items, best first. partial: fewer than asked for, partial_reason says why; filtered: how many were left out, by
    filter."""
    items: List[Recommendation]
    model: str
    version: str
    config_version: str
    seq: int
    epoch: int
    now_us: int
    rows_visible: List[int]  # behaviours in the short window, in the long part
    parameters: Dict[str, str]
    degrade_step: int
    exposures: List[Exposure]
    cache: CacheReport
    timings_us: Dict[str, int]
    unknown_user: bool
    beam: int
    sids_found: int
    partial: bool
    partial_reason: str
    filtered: Dict[str, int]
    rank_model: str
    rank_version: str


@dataclasses.dataclass(frozen=True)
class RankResult:
    """Scores in the order of the candidates. probabilities[task][i] is calibrated, logits[task][i] is raw."""
    items: List[int]
    probabilities: Dict[str, List[float]]
    logits: Dict[str, List[float]]
    model: str
    version: str
    config_version: str
    seq: int
    epoch: int
    now_us: int
    rows_visible: List[int]
    parameters: Dict[str, str]
    degrade_step: int
    exposures: List[Exposure]
    cache: CacheReport
    timings_us: Dict[str, int]
    explanations: List[List[Explained]]
    unknown_user: bool
    unknown_items: List[int]  # indices into items

    def best(self, count: int, task: Optional[str] = None) -> List[Tuple[int, float]]:
        """The `count` (item, probability) pairs of the highest probability, by the first task unless told."""
        column = self.probabilities[task or next(iter(self.probabilities))]
        return sorted(zip(self.items, column), key=lambda pair: -pair[1])[:count]


@dataclasses.dataclass(frozen=True)
class AppendResult:
    accepted: int
    duplicate: int
    conflict: int
    late: int
    rejected: int
    seq: int
    refusals: List[Tuple[int, str]]  # (index into the events, reason)


class EncodedItem(NamedTuple):
    """The semantic ID that a generative version gives an item with an embedding."""
    item_id: int
    model: str
    version: str
    sid: List[int]


@dataclasses.dataclass(frozen=True)
class UpsertResult:
    version: int                # of the namespace's catalog after the call
    encoded: List[EncodedItem]  # one per item with an embedding and loaded generative version that takes it


def to_us(time: Optional[Time]) -> int:
    """Microseconds of an int or an aware datetime; 0 for None. ValueError for a datetime without a zone, TypeError for all else."""
    if time is None:
        return 0
    if isinstance(time, datetime.datetime):
        if time.tzinfo is None:
            raise ValueError("a datetime without a time zone is ambiguous: give it one, or microseconds")
        return round((time - datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)) / datetime.timedelta(microseconds=1))
    if isinstance(time, float) and time.is_integer():
        return int(time)  # a pandas column with gaps holds these
    # Not int(time): numpy's datetime64[ns] would pass for microseconds, 1,000 times too late.
    try:
        return operator.index(time)
    except TypeError:
        raise TypeError(f"time must be microseconds (int) or an aware datetime, is {type(time).__name__}") from None
