"""Client of the Backstory serving engine.

    from backstory import Client
    with Client("127.0.0.1:8500", namespace="movielens") as client:
        result = client.rank("414", items=[1, 2, 3])
        print(result.best(2))

`Client` blocks, `AsyncClient` is the same with await. Both are safe to share between threads (tasks).
"""
from backstory.client import AsyncClient, Client
from backstory.table import TableError
from backstory.types import AppendResult, BackstoryError, CacheReport, Event, Explained, Item, Model, RankResult

__all__ = ["AppendResult", "AsyncClient", "BackstoryError", "CacheReport", "Client", "Event", "Explained", "Item",
           "Model", "RankResult", "TableError"]
