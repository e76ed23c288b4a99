"""What the batch tests share: a small world (store, model, rows), and the commands under test as processes."""
import csv
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import unittest

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("BACKSTORY_BINARY_DIR", ROOT / "build/release")) / "bin/backstory"
RAY_JOB = ROOT / "deploy/ray/score_job.py"
START, MINUTE = 1_600_000_000_000_000, 60_000_000
USERS, EVENTS, ITEMS = 24, 80, 30
LATER = START + 10_000 * MINUTE


def run_binary(*args):
    done = subprocess.run([BINARY, *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"backstory {args[0]}: {done.stderr}")
    return done.stdout


def write_events(path, seed, first=0, count=EVENTS):
    """Exposures, a third of them clicked; users of very different activity."""
    draw = random.Random(seed)
    with open(path, "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["user", "time_us", "item_id", "kind", "label", "scene", "position"])
        for user in range(USERS):
            for i in range(first, first + count // (1 + user % 4)):
                out.writerow([f"u{user}", START + (i * 7 + user) * MINUTE, draw.randint(1, ITEMS), "exposure",
                              int(draw.random() < 0.33), "feed", draw.randint(1, 9)])


def make_world(folder):
    """models/grab-tiny/1, store/ (namespace shop)."""
    folder.mkdir(parents=True, exist_ok=True)
    run_binary("model", "init-random", "grab-tiny", "--seed", 5, "--out", folder / "models/grab-tiny/1")
    write_events(folder / "events.csv", seed=1)
    with open(folder / "items.csv", "w") as file:
        file.write("item_id,categories,year\n" + "".join(f"{i},c{i % 5}|c{i % 3},{1990 + i}\n" for i in range(1, ITEMS)))
    run_binary("ingest", "--store", folder / "store", "--namespace", "shop", "--events", folder / "events.csv", "--items",
               folder / "items.csv")
    return folder


def make_rows(count, seed=7, **more):
    """Rows of all users (some unknown), items (some unknown) and times within and after the histories, in no order."""
    draw = random.Random(seed)
    users = [f"u{draw.randint(0, USERS + 1)}" for _ in range(count)]
    times = [START + draw.choice((50, 200, 400, 10_000)) * MINUTE for _ in range(count)]
    columns = {"user": users, "item_id": [draw.randint(1, ITEMS + 2) for _ in range(count)], "time_us": times}
    return pa.table({**columns, **more})


def batch_flags(world, input, output, *more):
    return ["--store", world / "store", "--models", world / "models", "--namespace", "shop", "--input", input, "--output",
            output, *more]


def command(*args, module="backstory_engine.score", **options):
    start = [sys.executable, "-m", module] if not str(module).endswith(".py") else [sys.executable, module]
    return subprocess.Popen([*map(str, start), *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            **options)


def finish(process, timeout=300):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def score(*args, **options):
    """(exit code, stdout, stderr) of a run of the command."""
    return finish(command(*args, **options))


def score_ok(*args, **options):
    code, out, err = score(*args, "--json", **options)
    assert code == 0, err
    return json.loads(out)


def read_parts(folder, name="part"):
    files = sorted(pathlib.Path(folder).glob(f"{name}-*.parquet"))
    return pa.concat_tables(map(pq.read_table, files)) if files else None


def bits(table):
    """Every column as bytes (floats bit by bit), rows in order of `row`."""
    table = table.sort_by("row").combine_chunks()
    return {name: repr(table.column(name).to_pylist()) if not pa.types.is_floating(table.column(name).type)
            else table.column(name).to_numpy().tobytes() for name in table.column_names}


class WorldTest(unittest.TestCase):
    """A world for all tests of a class, and a scratch folder for each."""

    @classmethod
    def setUpClass(cls):
        cls.scratch = tempfile.TemporaryDirectory(prefix="backstory-batch-")
        cls.world = make_world(pathlib.Path(cls.scratch.name) / "world")

    @classmethod
    def tearDownClass(cls):
        cls.scratch.cleanup()

    def setUp(self):
        self.folder = pathlib.Path(self.scratch.name) / self.id().rsplit(".", 1)[-1]
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    def write(self, table, name="rows.parquet", **options):
        pq.write_table(table, self.folder / name, **options)
        return self.folder / name

    def flags(self, input, output, *more):
        return batch_flags(self.world, input, self.folder / output, *more)

    def scorer(self, **options):
        from backstory_engine import Scorer
        return Scorer(self.world / "store", self.world / "models", namespace="shop", **options)
