"""The blocking and the async client: deadlines and retries come from the service config that the package carries."""
import asyncio
import pathlib
import queue
from typing import List, Optional, Sequence

import grpc
from grpc import aio

from backstory import schema, table, wire
from backstory.types import AppendResult, BackstoryError, CacheReport, Event, Item, RankResult, UserId

_SERVICE_CONFIG = pathlib.Path(__file__).with_name("service_config.json").read_text(encoding="utf-8")
_IN_FLIGHT = 32  # requests of one stream that wait for their reply; the server allows 64


def _options(max_message_bytes):
    return [("grpc.service_config", _SERVICE_CONFIG), ("grpc.enable_retries", 1),
            ("grpc.max_receive_message_length", max_message_bytes), ("grpc.max_send_message_length", max_message_bytes)]


def _error(error):
    pushback = dict(error.trailing_metadata() or ()).get("grpc-retry-pushback-ms")
    return BackstoryError(error.code().name, error.details() or "", int(pushback) if pushback else None)


def _stream_error(error):
    code = next((c.name for c in grpc.StatusCode if c.value[0] == error.code), str(error.code))
    return BackstoryError(code, error.message, error.retry_pushback_ms or None)


class _Calls:
    """What both clients share: one callable per RPC, the namespace, and the default timeout in seconds."""

    def __init__(self, channel, namespace, timeout, metadata):
        self._channel, self.namespace, self.timeout, self._metadata = channel, namespace, timeout, tuple(metadata)
        self._callables = {}

    def _callable(self, kind, service, name):
        if (service, name) not in self._callables:
            path, request, response = schema.method(service, name)
            self._callables[service, name] = getattr(self._channel, kind)(
                path, request_serializer=request.SerializeToString, response_deserializer=response.FromString)
        return self._callables[service, name]

    def _arguments(self, timeout):
        return {"timeout": self.timeout if timeout is None else timeout, "metadata": self._metadata}

    def _user_request(self, name, user):
        request = schema.message(name)(namespace=self.namespace)
        wire.user_ref(request.user, user)
        return request


class Client(_Calls):
    """Blocking client. Thread-safe.

    target: "host:port"; namespace: of every call; timeout: seconds a call may take, retries included; credentials: a
    grpc.ChannelCredentials for TLS, None for plaintext; metadata: pairs sent with every call, e.g. a bearer token.
    Every call raises BackstoryError.
    """

    def __init__(self, target: str, *, namespace: str = "default", timeout: float = 1.0,
                 credentials: Optional[grpc.ChannelCredentials] = None, metadata=(), max_message_bytes: int = 16 << 20):
        options = _options(max_message_bytes)
        channel = (grpc.insecure_channel(target, options) if credentials is None
                   else grpc.secure_channel(target, credentials, options))
        super().__init__(channel, namespace, timeout, metadata)

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.close()

    def close(self):
        self._channel.close()

    def _call(self, service, name, request, timeout=None):
        try:
            return self._callable("unary_unary", service, name)(request, **self._arguments(timeout))
        except grpc.RpcError as error:
            raise _error(error) from None

    def rank(self, user: UserId, items: Sequence[int], *, timeout: Optional[float] = None, **options) -> RankResult:
        """Scores `items` for `user`. Options: scene, device, session, request_id, model (a Model), now, as_of, known_by,
        criticality ("online", "batch", "shadow"), features {name: str or number}, columns {name: one value per item},
        parameters {name: value}, explain_top, timings."""
        request = wire.rank_request(self.namespace, user, items, **options)
        return wire.rank_result(items, self._call("Ranking", "Rank", request, timeout))

    def append(self, user: UserId, events: Sequence[Event], *, durability: str = "synced",
               timeout: Optional[float] = None) -> AppendResult:
        """Appends events; returns once they are durable. Idempotent by (event_id, revision): repeat it freely."""
        request = wire.append_request(self.namespace, user, events, durability)
        return wire.append_result(self._call("History", "Append", request, timeout))

    def prefetch(self, user: UserId, *, timeout: Optional[float] = None) -> List[CacheReport]:
        """Brings the user's state up to date ahead of a rank."""
        response = self._call("History", "Prefetch", self._user_request("PrefetchRequest", user), timeout)
        return [wire.cache_report(state) for state in response.states]

    def delete_user(self, user: UserId, *, timeout: Optional[float] = None) -> int:
        """Deletes the whole user; returns how many events that were. Replays of older events are refused from then on."""
        request = self._user_request("DeleteRequest", user)
        request.all = True
        return self._call("History", "Delete", request, timeout).deleted

    def upsert_items(self, items: Sequence[Item], *, timeout: Optional[float] = None) -> int:
        """Inserts or replaces catalog items, all or nothing; returns the catalog's version."""
        return self._call("Catalog", "Upsert", wire.upsert_request(self.namespace, items), timeout).version

    def recommend(self, user: UserId, count: int, *, timeout: Optional[float] = None):
        """The items most likely next, as (item_id, log probability). UNIMPLEMENTED unless the server has a generative
        model loaded."""
        request = schema.message("RecommendRequest")(namespace=self.namespace, count=count)
        wire.user_ref(request.units.user, user)
        response = self._call("Retrieval", "Recommend", request, timeout)
        return [(item.item_id, item.log_probability) for item in response.items]

    def score_table(self, rows, *, user: str, item: str, time: Optional[str] = None, task: Optional[str] = None,
                    timeout: float = 3600.0, **options) -> List[float]:
        """The calibrated probability of every (user, item) row, in row order.

        rows: anything with named columns (pandas, pyarrow, dict of lists). `time`: column of microseconds; each row is
        ranked as of its own time, so that it never sees the future; without it, as of now. number_columns and
        text_columns name candidate columns. Rows of one user and time share one request; many are in flight at once.
        """
        scores: dict = {}
        waiting: dict = {}
        problem: list = []  # an error in `rows`, met on gRPC's sending thread
        room = queue.Queue()  # one token per free place in flight; None ends the writer
        for _ in range(_IN_FLIGHT):
            room.put(True)

        def outgoing():
            groups = table.requests(rows, self.namespace, user=user, item=item, time=time, **options)
            try:
                for number, (members, request) in enumerate(groups, 1):
                    if room.get() is None:
                        return
                    request.request_id = number
                    waiting[number] = members
                    yield request
            except (TypeError, ValueError) as error:
                problem.append(error)

        try:
            for reply in self._callable("stream_stream", "Ranking", "RankStream")(outgoing(), **self._arguments(timeout)):
                if reply.HasField("error"):
                    raise _stream_error(reply.error)
                _keep(scores, waiting.pop(reply.request_id), reply.response, task)
                room.put(True)
        except grpc.RpcError as error:
            raise _error(error) from None
        finally:
            room.put(None)
        if problem:
            raise problem[0]
        if waiting:
            raise BackstoryError("UNAVAILABLE", f"the stream ended with {len(waiting)} requests unanswered")
        return [scores[row] for row in range(len(scores))]

    def score_dataframe(self, frame, *, into: str = "p", **options):
        """A copy of a pandas DataFrame with the column `into`; options as in score_table."""
        return frame.assign(**{into: self.score_table(frame, **options)})


def _keep(scores, members, response, task):
    columns = {column.task: column.calibrated for column in response.scores}
    for row, p in zip(members, columns[task] if task else response.scores[0].calibrated):
        scores[row] = p


class AsyncClient(_Calls):
    """The same for asyncio: `async with AsyncClient(...) as client: await client.rank(...)`."""

    def __init__(self, target: str, *, namespace: str = "default", timeout: float = 1.0,
                 credentials: Optional[grpc.ChannelCredentials] = None, metadata=(), max_message_bytes: int = 16 << 20):
        options = _options(max_message_bytes)
        channel = (aio.insecure_channel(target, options) if credentials is None
                   else aio.secure_channel(target, credentials, options))
        super().__init__(channel, namespace, timeout, metadata)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *unused):
        await self._channel.close()

    async def _call(self, service, name, request, timeout=None):
        try:
            return await self._callable("unary_unary", service, name)(request, **self._arguments(timeout))
        except grpc.RpcError as error:
            raise _error(error) from None

    async def rank(self, user: UserId, items: Sequence[int], *, timeout: Optional[float] = None, **options) -> RankResult:
        """As Client.rank."""
        request = wire.rank_request(self.namespace, user, items, **options)
        return wire.rank_result(items, await self._call("Ranking", "Rank", request, timeout))

    async def append(self, user: UserId, events: Sequence[Event], *, durability: str = "synced",
                     timeout: Optional[float] = None) -> AppendResult:
        """As Client.append."""
        request = wire.append_request(self.namespace, user, events, durability)
        return wire.append_result(await self._call("History", "Append", request, timeout))

    async def prefetch(self, user: UserId, *, timeout: Optional[float] = None) -> List[CacheReport]:
        """As Client.prefetch."""
        response = await self._call("History", "Prefetch", self._user_request("PrefetchRequest", user), timeout)
        return [wire.cache_report(state) for state in response.states]

    async def upsert_items(self, items: Sequence[Item], *, timeout: Optional[float] = None) -> int:
        """As Client.upsert_items."""
        return (await self._call("Catalog", "Upsert", wire.upsert_request(self.namespace, items), timeout)).version

    async def score_table(self, rows, *, user: str, item: str, time: Optional[str] = None, task: Optional[str] = None,
                          timeout: Optional[float] = None, **options) -> List[float]:
        """As Client.score_table, with one call per group, _IN_FLIGHT at a time."""
        scores: dict = {}
        room = asyncio.Semaphore(_IN_FLIGHT)

        async def one(members, request):
            async with room:
                _keep(scores, members, await self._call("Ranking", "Rank", request, timeout), task)

        await asyncio.gather(*(one(members, request) for members, request in
                               table.requests(rows, self.namespace, user=user, item=item, time=time, **options)))
        return [scores[row] for row in range(len(scores))]
