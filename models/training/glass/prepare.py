"""Turns a public log into the data folder that every other program of this package reads.

    python3 -m models.training.glass.prepare movielens --source deploy/data/ml-latest-small --out DATA
    python3 -m models.training.glass.prepare journey --source FOLDER_OF_PARQUET --out DATA   # needs pandas and pyarrow
    python3 -m models.training.glass.embed --data DATA                                       # needs transformers

DATA/log.safetensors then holds, oldest first per user in order of (time_us, event id):
    user.offsets I64 [users + 1], event.item I32 [events] (catalogue rows), event.time_us I64, event.split I8 [events],
    item.id I64 [items], item.text and user.id as U8 bytes with I64 offsets beside them.

What is a positive. The generative model has no action types, so the history it reads is the list of things the user
chose. movielens: ratings of 4 or more (48 % of all, the same rule as grab-ml); lower ratings say what a user watched
but not what to recommend. journey: every purchase; a product bought twice in one basket counts once.

Split. Per user and in time: the last 10 % of the positives test, the 10 % before validate, the rest trains. Events of
one moment (the same second, the same basket) never straddle a cut and never see each other. Users with fewer than 5
positives only train. What belongs to the catalogue of journey is decided from the training part alone.
"""
import argparse
import csv
import os

import numpy as np

from models.training import tensor_file

TRAIN, VALIDATION, TEST = 0, 1, 2
_MICRO = 1_000_000


def split_user(time_us, test=0.1, validation=0.1, at_least=5):
    """Split of one user's events in time order, cut between moments: int8 [n]."""
    n = len(time_us)
    split = np.zeros(n, np.int8)
    if n < at_least:
        return split
    begins = np.flatnonzero(np.r_[True, time_us[1:] != time_us[:-1]])

    def cut(share, end):
        """The latest moment that leaves at least `share` of all events between itself and `end`."""
        wanted = end - max(1, int(round(share * n)))
        usable = begins[begins <= max(0, wanted)]
        return int(usable[-1])

    first_test = cut(test, n)
    if first_test == 0:  # everything is one moment
        return split
    first_validation = cut(validation, first_test)
    split[first_test:] = TEST
    if first_validation > 0:
        split[first_validation:first_test] = VALIDATION
    return split


def in_order(user, time_us, event_id):
    """(names of the users, row offset of each, order) that sorts events by (user, time_us, event id)."""
    names, index = np.unique(user, return_inverse=True)
    order = np.lexsort((event_id, time_us, index))
    return names, np.searchsorted(index[order], np.arange(len(names) + 1)).astype(np.int64), order


def split_log(offsets, time_us):
    return np.concatenate([split_user(time_us[a:b]) for a, b in zip(offsets[:-1], offsets[1:])])


def write_log(folder, names, offsets, item, time_us, split, item_id, text, about):
    """Writes log.safetensors; events are in order, `item` holds catalogue rows."""
    os.makedirs(folder, exist_ok=True)
    tensors = {"user.offsets": offsets, "event.item": item.astype(np.int32), "event.time_us": time_us.astype(np.int64),
               "event.split": split.astype(np.int8), "item.id": item_id.astype(np.int64)}
    for name, values in (("user.id", names), ("item.text", text)):
        raw = [str(value).encode("utf-8") for value in values]
        tensors[name] = np.frombuffer(b"".join(raw), np.uint8)
        tensors[f"{name}.offsets"] = np.cumsum([0] + [len(value) for value in raw]).astype(np.int64)
    tensor_file.write_tensors(os.path.join(folder, "log.safetensors"), tensors, about)
    counts = np.bincount(split, minlength=3)
    print(f"{folder}: {len(names)} users, {len(item_id)} items, {len(item)} events: {counts[0]} train, {counts[1]} "
          f"validate, {counts[2]} test")


def movielens(source, out):
    """ratings.csv and movies.csv of GroupLens. The catalogue is every movie."""
    with open(os.path.join(source, "movies.csv"), encoding="utf-8") as file:
        movies = sorted(csv.DictReader(file), key=lambda movie: int(movie["movieId"]))
    with open(os.path.join(source, "ratings.csv"), encoding="utf-8") as file:
        ratings = [row for row in csv.DictReader(file) if float(row["rating"]) >= 4]
    ids = np.array([int(movie["movieId"]) for movie in movies])
    text = [movie["title"] + ". " + movie["genres"].replace("|", ", ") for movie in movies]
    movie = np.array([int(row["movieId"]) for row in ratings])
    time_us = np.array([int(row["timestamp"]) for row in ratings]) * _MICRO
    names, offsets, order = in_order(np.array([row["userId"] for row in ratings]), time_us, movie)
    write_log(out, names, offsets, np.searchsorted(ids, movie[order]), time_us[order],
              split_log(offsets, time_us[order]), ids, text,
              {"name": "ml-latest-small", "positive": "rating >= 4", "unseen_only": "true"})


def journey(source, out, at_least=10):
    """transactions.parquet and products.parquet of completejourney: simulated from real shopping patterns.

    Catalogue: products bought at least `at_least` times in the training part; other purchases are left out.
    """
    import pyarrow.parquet as parquet
    bought = parquet.read_table(os.path.join(source, "transactions.parquet")).to_pandas()
    products = parquet.read_table(os.path.join(source, "products.parquet")).to_pandas().sort_values("product_id")
    bought = bought.drop_duplicates(["household_id", "basket_id", "product_id"])
    time = bought.groupby("basket_id")["transaction_timestamp"].transform("min")
    time_us = time.astype("datetime64[us]").astype(np.int64).to_numpy()
    product = bought["product_id"].to_numpy(np.int64)
    names, offsets, order = in_order(bought["household_id"].astype(str).to_numpy(), time_us, product)
    product, time_us = product[order], time_us[order]
    split = split_log(offsets, time_us)
    ids, counts = np.unique(product[split == TRAIN], return_counts=True)
    ids = np.intersect1d(ids[counts >= at_least], products["product_id"].to_numpy(np.int64))
    kept = np.isin(product, ids)
    print(f"catalogue {len(ids)} of {len(np.unique(product))} products, {kept.mean():.1%} of the purchases")
    columns = ("product_type", "product_category", "department", "brand", "package_size")
    text = [", ".join(str(row[c]).lower() for c in columns if row[c] is not None) or "unknown"
            for row in products[products["product_id"].isin(ids)].to_dict("records")]
    user = np.repeat(np.arange(len(names)), np.diff(offsets))[kept]
    write_log(out, names, np.searchsorted(user, np.arange(len(names) + 1)).astype(np.int64),
              np.searchsorted(ids, product[kept]), time_us[kept], split[kept], ids, text,
              {"name": "completejourney (simulated from real shopping patterns)", "positive": "purchase",
               "unseen_only": "false"})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("movielens", "journey"))
    parser.add_argument("--source", required=True)
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    {"movielens": movielens, "journey": journey}[arguments.kind](arguments.source, arguments.out)


if __name__ == "__main__":
    main()
