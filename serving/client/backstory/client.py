"""The blocking and the async client. Retries come from the service config that the package carries, deadlines from
here: every call has one. (A `timeout` in a service config is cut short by gRPC core and never told to the server:
docs/reference/api.md.)"""
import asyncio
import pathlib
import queue
from time import monotonic, sleep
from typing import Dict, List, Mapping, Optional, Sequence, Union

import grpc
from grpc import aio

from backstory import schema, table, wire
from backstory.types import (AppendResult, BackstoryError, CacheReport, Event, Item, Model, NotServedError, RankResult,
                             RecommendResult, Time, UpsertResult, UserId)

_SERVICE_CONFIG = pathlib.Path(__file__).with_name("service_config.json").read_text(encoding="utf-8")
_STOP = object()
_IN_FLIGHT = 32  # requests that wait for their reply while a table is scored; the server allows 64 a stream

Features = Mapping[str, Union[str, float]]
Columns = Mapping[str, Union[Sequence[float], Sequence[str]]]


def _options(max_message_bytes):
    return [("grpc.service_config", _SERVICE_CONFIG), ("grpc.enable_retries", 1),
            ("grpc.max_receive_message_length", max_message_bytes), ("grpc.max_send_message_length", max_message_bytes)]


def _refusal(code, message, retry_after_ms):
    return (NotServedError if code == "UNIMPLEMENTED" else BackstoryError)(code, message, retry_after_ms)


def _error(error):
    # Pairs, of either API; dict() of the async one's metadata fails.
    pushback = next((value for key, value in error.trailing_metadata() or () if key == "grpc-retry-pushback-ms"), None)
    return _refusal(error.code().name, error.details() or "", int(pushback) if pushback else None)


def _stream_error(error):
    code = next((c.name for c in grpc.StatusCode if c.value[0] == error.code), str(error.code))
    return _refusal(code, error.message, error.retry_pushback_ms or None)


def _keep(scores, members, response, task):
    columns = {column.task: column.calibrated for column in response.scores}
    if task and task not in columns:
        raise ValueError(f"task: {task!r} is not one of {', '.join(columns)}")
    for row, p in zip(members, columns[task] if task else response.scores[0].calibrated):
        scores[row] = p


class _Calls:
    """What both clients share: one callable per RPC, the namespace, and the default timeout in seconds."""

    def __init__(self, channel, namespace, timeout, metadata):
        if not timeout > 0:
            raise ValueError(f"timeout: must be > 0 seconds, is {timeout}")
        self._channel, self.namespace, self.timeout, self._metadata = channel, namespace, timeout, tuple(metadata)
        self._callables: Dict = {}

    def _callable(self, kind, service, name):
        if (service, name) not in self._callables:
            path, request, response = schema.method(service, name)
            self._callables[service, name] = getattr(self._channel, kind)(
                path, request_serializer=request.SerializeToString, response_deserializer=response.FromString)
        return self._callables[service, name]

    def _arguments(self, timeout):
        return {"timeout": self.timeout if timeout is None else timeout, "metadata": self._metadata}


class Client(_Calls):
    """Blocking client. Thread-safe.

    target: "host:port"; namespace: of every call; timeout: seconds a call may take, retries included; credentials: a
    grpc.ChannelCredentials for TLS, None for plaintext; metadata: pairs sent with every call, e.g. a bearer token.
    Every call raises BackstoryError if the server refused it or did not answer in time, and ValueError, TypeError or
    TableError for arguments that cannot be sent.
    """

    def __init__(self, target: str, *, namespace: str = "default", timeout: float = 1.0,
                 credentials: Optional[grpc.ChannelCredentials] = None, metadata=(), max_message_bytes: int = 16 << 20):
        options = _options(max_message_bytes)
        channel = (grpc.insecure_channel(target, options) if credentials is None
                   else grpc.secure_channel(target, credentials, options))
        super().__init__(channel, namespace, timeout, metadata)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *unused):
        self.close()

    def close(self) -> None:
        self._channel.close()

    def _call(self, service, name, request, timeout):
        try:
            return self._callable("unary_unary", service, name)(request, **self._arguments(timeout))
        except grpc.RpcError as error:
            raise _error(error) from None

    def rank(self, user: UserId, items: Sequence[int], *, scene: str = "", device: str = "", session: str = "",
             request_id: int = 0, model: Optional[Model] = None, now: Optional[Time] = None,
             as_of: Optional[Time] = None, known_by: Optional[Time] = None, criticality: str = "online",
             features: Optional[Features] = None, columns: Optional[Columns] = None,
             parameters: Optional[Mapping[str, object]] = None, explain_top: int = 0, timings: bool = False,
             suppress_exposure: bool = False, timeout: Optional[float] = None) -> RankResult:
        """Scores `items` for `user`; ranking.proto says what each option means. criticality: "online", "batch" or
        "shadow". columns: {name: one value per item}. parameters need the role "override". suppress_exposure: a
        counterfactual call, which exposes nobody to an experiment."""
        request = wire.rank_request(
            self.namespace, user, items, scene=scene, device=device, session=session, request_id=request_id,
            model=model, now=now, as_of=as_of, known_by=known_by, criticality=criticality, features=features, columns=columns,
            parameters=parameters, explain_top=explain_top, timings=timings, suppress_exposure=suppress_exposure)
        return wire.rank_result(items, self._call("Ranking", "Rank", request, timeout))

    def recommend(self, user: UserId, count: int, *, beam: int = 0, exclude: Sequence[int] = (),
                  categories: Sequence[str] = (), exclude_seen: Optional[bool] = None,
                  per_sid_max: Optional[int] = None, rank: bool = False, rank_model: Optional[Model] = None,
                  rank_candidates: int = 0, timeout: Optional[float] = None, **options) -> RecommendResult:
        """The `count` items most likely next, by a generative model; retrieval.proto says what each option means.
        exclude_seen and per_sid_max: None leaves them to the server. rank: pass them through a ranking model as well.
        Other options as for rank (scene, model, now, as_of, explain_top, ...). NOT_FOUND without a generative model."""
        request = wire.recommend_request(
            self.namespace, user, count, beam=beam, exclude=exclude, categories=categories, exclude_seen=exclude_seen,
            per_sid_max=per_sid_max, rank=rank, rank_model=rank_model, rank_candidates=rank_candidates, **options)
        return wire.recommend_result(self._call("Retrieval", "Recommend", request, timeout))

    def append(self, user: UserId, events: Sequence[Event], *, durability: str = "synced",
               timeout: Optional[float] = None) -> AppendResult:
        """Appends events; returns once they are durable. Idempotent by (event_id, revision): repeat it freely."""
        request = wire.append_request(self.namespace, user, events, durability)
        return wire.append_result(self._call("History", "Append", request, timeout))

    def prefetch(self, user: UserId, *, timeout: Optional[float] = None) -> List[CacheReport]:
        """Brings the user's state up to date ahead of a rank."""
        response = self._call("History", "Prefetch", wire.prefetch_request(self.namespace, user), timeout)
        return [wire.cache_report(state) for state in response.states]

    def delete_user(self, user: UserId, *, timeout: Optional[float] = None) -> int:
        """Deletes the whole user; returns how many events that were. Replays of older events are then refused."""
        return self._call("History", "Delete", wire.delete_request(self.namespace, user), timeout).deleted

    def upsert_items(self, items: Sequence[Item], *, timeout: Optional[float] = None) -> UpsertResult:
        """Inserts or replaces catalog items, all or nothing. The result has the catalog's version and the semantic IDs that
        generative versions gave to embeddings."""
        return wire.upsert_result(self._call("Catalog", "Upsert", wire.upsert_request(self.namespace, items), timeout))

    def score_table(self, rows, *, user: str, item: str, time: Optional[str] = None, task: Optional[str] = None,
                    timeout: float = 3600.0, **options) -> List[float]:
        """The calibrated probability of every (user, item) row, in row order.

        rows: anything with named columns (pandas, pyarrow, dict of lists). `time`: column of microseconds; each row is
        ranked as of its own time, so that it never sees the future; without it, as of now. task: of the model, else its
        first one. number_columns and text_columns name candidate columns; other options as for rank. Rows of one user
        and time share one request; many are in flight at once, and what a busy server sheds (BATCH goes first) is asked
        again when it says. timeout: seconds for the whole table.
        """
        scores: dict = {}
        waiting: dict = {}  # by request id: rows and request
        problem: list = []  # an error in `rows`, met on gRPC's sending thread
        # One token per free place in flight: None, or (when, request id) of what the server shed and wants later. STOP
        # ends the writer.
        room: queue.Queue = queue.Queue()
        for _ in range(_IN_FLIGHT):
            room.put(None)

        def outgoing():
            groups = enumerate(table.requests(rows, self.namespace, user=user, item=item, time=time, **options), 1)
            try:
                while (token := room.get()) is not _STOP:
                    if token is not None:
                        sleep(max(0.0, token[0] - monotonic()))
                        yield waiting[token[1]][1]
                        continue
                    number, (members, request) = next(groups, (0, (None, None)))
                    if request is not None:
                        request.request_id = number
                        waiting[number] = members, request
                        yield request
                    elif not waiting:  # else the last reply brings the next token
                        return
            except (TypeError, ValueError) as error:
                problem.append(error)

        call = self._callable("stream_stream", "Ranking", "RankStream")
        try:
            for reply in call(outgoing(), **self._arguments(timeout)):
                if reply.error.retry_pushback_ms and reply.request_id in waiting:
                    room.put((monotonic() + reply.error.retry_pushback_ms / 1000, reply.request_id))
                    continue
                if reply.HasField("error"):
                    raise _stream_error(reply.error)
                _keep(scores, waiting.pop(reply.request_id)[0], reply.response, task)
                room.put(None)
        except grpc.RpcError as error:
            raise _error(error) from None
        finally:
            room.put(_STOP)
        if problem:
            raise problem[0]
        if waiting:
            raise BackstoryError("UNAVAILABLE", f"the stream ended with {len(waiting)} requests unanswered")
        return [scores[row] for row in range(len(scores))]

    def score_dataframe(self, frame, *, into: str = "p", **options):
        """A copy of `frame` (pandas, pyarrow, a dict of lists) with the column `into`; options as for score_table."""
        return table.with_column(frame, into, self.score_table(frame, **options))


class AsyncClient(_Calls):
    """The same for asyncio: `async with AsyncClient(...) as client: await client.rank(...)`."""

    def __init__(self, target: str, *, namespace: str = "default", timeout: float = 1.0,
                 credentials: Optional[grpc.ChannelCredentials] = None, metadata=(), max_message_bytes: int = 16 << 20):
        options = _options(max_message_bytes)
        channel = (aio.insecure_channel(target, options) if credentials is None
                   else aio.secure_channel(target, credentials, options))
        super().__init__(channel, namespace, timeout, metadata)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *unused):
        await self.close()

    async def close(self) -> None:
        await self._channel.close()

    async def _call(self, service, name, request, timeout):
        try:
            return await self._callable("unary_unary", service, name)(request, **self._arguments(timeout))
        except grpc.RpcError as error:
            raise _error(error) from None

    async def rank(self, user: UserId, items: Sequence[int], *, scene: str = "", device: str = "", session: str = "",
                   request_id: int = 0, model: Optional[Model] = None, now: Optional[Time] = None,
                   as_of: Optional[Time] = None, known_by: Optional[Time] = None, criticality: str = "online",
                   features: Optional[Features] = None, columns: Optional[Columns] = None,
                   parameters: Optional[Mapping[str, object]] = None, explain_top: int = 0, timings: bool = False,
                   suppress_exposure: bool = False, timeout: Optional[float] = None) -> RankResult:
        """As Client.rank."""
        request = wire.rank_request(
            self.namespace, user, items, scene=scene, device=device, session=session, request_id=request_id,
            model=model, now=now, as_of=as_of, known_by=known_by, criticality=criticality, features=features, columns=columns,
            parameters=parameters, explain_top=explain_top, timings=timings, suppress_exposure=suppress_exposure)
        return wire.rank_result(items, await self._call("Ranking", "Rank", request, timeout))

    async def recommend(self, user: UserId, count: int, *, beam: int = 0, exclude: Sequence[int] = (),
                        categories: Sequence[str] = (), exclude_seen: Optional[bool] = None,
                        per_sid_max: Optional[int] = None, rank: bool = False, rank_model: Optional[Model] = None,
                        rank_candidates: int = 0, timeout: Optional[float] = None, **options) -> RecommendResult:
        """As Client.recommend."""
        request = wire.recommend_request(
            self.namespace, user, count, beam=beam, exclude=exclude, categories=categories, exclude_seen=exclude_seen,
            per_sid_max=per_sid_max, rank=rank, rank_model=rank_model, rank_candidates=rank_candidates, **options)
        return wire.recommend_result(await self._call("Retrieval", "Recommend", request, timeout))

    async def append(self, user: UserId, events: Sequence[Event], *, durability: str = "synced",
                     timeout: Optional[float] = None) -> AppendResult:
        """As Client.append."""
        request = wire.append_request(self.namespace, user, events, durability)
        return wire.append_result(await self._call("History", "Append", request, timeout))

    async def prefetch(self, user: UserId, *, timeout: Optional[float] = None) -> List[CacheReport]:
        """As Client.prefetch."""
        response = await self._call("History", "Prefetch", wire.prefetch_request(self.namespace, user), timeout)
        return [wire.cache_report(state) for state in response.states]

    async def delete_user(self, user: UserId, *, timeout: Optional[float] = None) -> int:
        """As Client.delete_user."""
        return (await self._call("History", "Delete", wire.delete_request(self.namespace, user), timeout)).deleted

    async def upsert_items(self, items: Sequence[Item], *, timeout: Optional[float] = None) -> UpsertResult:
        """As Client.upsert_items."""
        return wire.upsert_result(
            await self._call("Catalog", "Upsert", wire.upsert_request(self.namespace, items), timeout))

    async def score_table(self, rows, *, user: str, item: str, time: Optional[str] = None, task: Optional[str] = None,
                          timeout: Optional[float] = None, **options) -> List[float]:
        """As Client.score_table, with one call per group of rows, _IN_FLIGHT at a time; timeout: seconds per call."""
        scores: dict = {}
        groups = table.requests(rows, self.namespace, user=user, item=item, time=time, **options)

        async def work():
            for members, request in groups:  # shared: every worker takes the next one
                _keep(scores, members, await self._call("Ranking", "Rank", request, timeout), task)

        workers = [asyncio.ensure_future(work()) for _ in range(_IN_FLIGHT)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
        return [scores[row] for row in range(len(scores))]

    async def score_dataframe(self, frame, *, into: str = "p", **options):
        """As Client.score_dataframe."""
        return table.with_column(frame, into, await self.score_table(frame, **options))
