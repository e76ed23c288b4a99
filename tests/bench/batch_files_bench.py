"""Batch scoring from Parquet to Parquet, and on Ray, beside the engine alone: rows/s, interleaved rounds.

    build/python-venv/bin/python tests/bench/batch_files_bench.py make DIR     MovieLens store and 4.4 M rows
    build/python-venv/bin/python tests/bench/batch_files_bench.py round DIR    one round of all; repeat
    build/python-venv/bin/python tests/bench/batch_files_bench.py report DIR   medians of the rounds so far

Engine alone: `batch_bench` (C++): Engine::Rank with the same requests, made before the clock starts, one thread, states
built on the way. Parquet to Parquet: `seconds` of the command, one thread, from opening the engine to _SUCCESS. Ray:
once every worker has begun, one thread a worker. Two processes: the command twice at once, half
of the rows each: what the machine gives to two workers of any kind.
"""
import json
import pathlib
import re
import statistics
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = ROOT / "build/release"
DATA = ROOT / "deploy/data/ml-latest-small"
TIMES, CANDIDATES = 24, 300


def make(folder):
    """Every user at 24 times of their history, 300 movies each time."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([BUILD / "bin/backstory", "ingest", "--store", folder / "store", "--namespace", "movielens",
                    "--preset", "movielens", "--events", DATA / "ratings.csv", "--items", DATA / "movies.csv"],
                   check=True)
    ratings = pyarrow.csv.read_csv(DATA / "ratings.csv")
    users, times = ratings["userId"].to_numpy(), ratings["timestamp"].to_numpy()
    movies = np.unique(ratings["movieId"].to_numpy())
    draw, columns = np.random.default_rng(1), ([], [], [])
    for user in np.unique(users):
        mine = np.sort(times[users == user])
        for at in range(TIMES):
            columns[0].append(np.full(CANDIDATES, user))
            columns[1].append(draw.choice(movies, CANDIDATES, replace=False))
            columns[2].append(np.full(CANDIDATES, (mine[(len(mine) - 1) * (at + 1) // TIMES] + 1) * 1_000_000))
    table = pa.table([np.concatenate(c) for c in columns], names=["user", "item_id", "time_us"])
    pq.write_table(table, folder / "rows.parquet", row_group_size=100_000)
    for number in (0, 1):
        half = table.slice(number * table.num_rows // 2, table.num_rows // 2)
        pq.write_table(half, folder / f"half-{number}.parquet", row_group_size=100_000)
    pyarrow.csv.write_csv(table, folder / "rows.csv", pyarrow.csv.WriteOptions(quoting_style="none"))
    print(f"{table.num_rows:,} rows")


def flags(folder, output):
    subprocess.run(["rm", "-rf", output], check=True)
    return ["--store", folder / "store", "--models", ROOT / "models/zoo", "--namespace", "movielens", "--input",
            folder / "rows.parquet", "--output", output, "--threads", "1", "--json"]


def last_json(*command):
    out = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])


def one_round(folder):
    rows = pq.read_metadata(folder / "rows.parquet").num_rows
    command = BUILD / "bin/batch_bench", folder / "store", ROOT / "models/zoo", "movielens", folder / "rows.csv"
    alone = subprocess.run([*map(str, command), "user=user", "us", "1", "1"], check=True, capture_output=True, text=True)
    rates = re.search(r"with building states +engine alone +(\d+), batch scorer +(\d+) rows a second of wall",
                      alone.stdout)
    result = {"engine alone": float(rates[1]), "batch scorer": float(rates[2])}
    files = last_json(sys.executable, "-m", "backstory_engine.score", *flags(folder, folder / "files"))
    result["Parquet to Parquet"] = rows / files["seconds"]
    result["two processes"] = rows / two_processes(folder)
    for workers in (1, 2):
        ray = last_json(sys.executable, ROOT / "deploy/ray/score_job.py", *flags(folder, folder / f"ray-{workers}"),
                        "--workers", workers, "--rows-per-part", 60_000)
        result[f"Ray, {workers} workers"] = ray["rows_per_second"]
        result[f"Ray, {workers} workers, seconds in all"] = ray["seconds"]
    tables = [pa.concat_tables(map(pq.read_table, (folder / name).glob("part-*"))).sort_by("row").combine_chunks()
              for name in ("files", "ray-1", "ray-2")]
    result["equal bits"] = float(all(table.equals(tables[0]) for table in tables))
    with (folder / "rounds.jsonl").open("a") as file:
        file.write(json.dumps(result) + "\n")
    print(result)


def two_processes(folder):
    """Seconds that the slower of the two takes."""
    halves = []
    for number in (0, 1):
        arguments = flags(folder, folder / f"half-{number}")
        arguments[arguments.index("--input") + 1] = folder / f"half-{number}.parquet"
        halves.append(subprocess.Popen([*map(str, [sys.executable, "-m", "backstory_engine.score", *arguments])],
                                       stdout=subprocess.PIPE, text=True))
    return max(json.loads(half.communicate()[0])["seconds"] for half in halves)


def report(folder):
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    median = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    for name, value in median.items():
        print(f"{name:35} {value:12,.1f}   {', '.join(f'{r[name]:,.1f}' for r in rounds)}")
    print(f"Parquet to Parquet / engine alone   {median['Parquet to Parquet'] / median['engine alone']:.3f}")
    print(f"two processes / one                 {median['two processes'] / median['Parquet to Parquet']:.3f}")
    print(f"Ray, 2 workers / 1 worker           {median['Ray, 2 workers'] / median['Ray, 1 workers']:.3f}")


if __name__ == "__main__":
    {"make": make, "round": one_round, "report": report}[sys.argv[1]](pathlib.Path(sys.argv[2]))
