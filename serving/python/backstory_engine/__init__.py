"""Backstory's engine in this process: offline scoring of Arrow tables and Parquet files.

    from backstory_engine import Scorer
    with Scorer(store="/data/checkpoint", models="models/zoo") as scorer:
        scores = scorer.score(table)         # a pyarrow Table with columns user, item_id, time_us

    python -m backstory_engine.score --store ... --models ... --input rows.parquet --output scores.parquet
"""
from backstory_engine.errors import BackstoryError, BadRowsError, DamagedInputError, InputError
from backstory_engine.scorer import Scorer

__all__ = ["BackstoryError", "BadRowsError", "DamagedInputError", "InputError", "Scorer"]
