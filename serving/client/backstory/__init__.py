"""Client of the Backstory serving engine.

    from backstory import Client
    with Client("127.0.0.1:7070", namespace="movielens") as client:
        result = client.rank("414", items=[1, 2, 3])
        print(result.best(2))

`Client` blocks, `AsyncClient` is the same with await. Both are safe to share between threads (tasks). `bucket` is the
hash of experiment assignment.
"""
from backstory.buckets import bucket
from backstory.client import AsyncClient, Client
from backstory.table import TableError
from backstory.types import (AppendResult, BackstoryError, CacheReport, EncodedItem, Event, Explained, Exposure, Item,
                             Model, NotServedError, RankResult, Recommendation, RecommendResult, UpsertResult)

__all__ = ["AppendResult", "AsyncClient", "BackstoryError", "CacheReport", "Client", "EncodedItem", "Event", "Explained",
           "Exposure", "Item", "Model", "NotServedError", "RankResult", "Recommendation", "RecommendResult", "TableError",
           "UpsertResult", "bucket"]
