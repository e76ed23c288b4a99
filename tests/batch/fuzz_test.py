"""Broken Parquet and Arrow files, by hand and by dice: a clear error or bad rows, never a crash.

Each round runs in a child process, so that a crash is seen and its file kept. BACKSTORY_SEED repeats a run,
BACKSTORY_FUZZ_ROUNDS lengthens it.
"""
import os
import pathlib
import random
import resource
import subprocess
import sys
import tempfile
import unittest

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import files_test
import harness

ROUNDS = int(os.environ.get("BACKSTORY_FUZZ_ROUNDS", 120))  # of each format
SEED = int(os.environ.get("BACKSTORY_SEED", 20))
ROWS = 300


def corpus(folder):
    """One good file of each kind."""
    rows = harness.make_rows(ROWS).append_column("candidate_numbers.bid", pa.array([i / 3 for i in range(ROWS)]))
    nested = rows.append_column("request_numbers", pa.array([{"hour": i % 24} for i in range(ROWS)]))
    pq.write_table(rows, folder / "plain.parquet", row_group_size=100, compression="none", use_dictionary=False)
    pq.write_table(nested, folder / "packed.parquet", row_group_size=120, compression="zstd", write_page_checksum=True)
    files_test.write_ipc(rows, folder / "file.arrow", rows=90)
    files_test.write_ipc(nested, folder / "packed.arrow", rows=150, compression="lz4")
    files_test.write_ipc(rows, folder / "stream.arrows", stream=True, rows=90)
    return sorted(folder.iterdir())


def by_hand(data):
    """Cuts and fills at places that matter: both ends, the middle, length fields."""
    for size in (0, 1, 3, 4, 7, 8, 12, len(data) // 3, len(data) // 2, len(data) - 1, len(data) - 4, len(data) - 8):
        yield data[:size]
    for value in (0x00, 0xff, 0x7f, 0x80):
        for at in (0, 4, 8, len(data) // 2, len(data) - 12, len(data) - 8, len(data) - 5):
            yield data[:at] + bytes([value] * 4) + data[at + 4:]
    yield data + data
    yield data[4:]
    yield bytes(len(data))


def by_dice(data, draw):
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        kind, at = draw.randrange(4), draw.randrange(len(data))
        if kind == 0:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[at] = draw.randrange(256)
        elif kind == 2:
            width = draw.choice((2, 4, 8))
            data[at:at + width] = draw.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63)).to_bytes(8, "little")[:width]
        else:
            to = draw.randrange(len(data))
            data[to:to + 16] = data[at:at + 16]
    return bytes(data)


def child(world, folder):
    """Scores every file of `folder`; prints the name of each before it is touched."""
    from backstory_engine import BackstoryError, Scorer
    from backstory_engine.job import without_bad
    from backstory_engine.sources import Source
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    refused = scored = 0
    with Scorer(world / "store", world / "models", namespace="shop", cache_bytes=64 << 20) as scorer:
        for file in sorted(folder.iterdir()):
            print(file.name, flush=True)
            try:
                source = Source(file)
                if source.rows > 10 * ROWS:
                    raise BackstoryError("DATA_LOSS", "says it has more rows than bytes")
                columns = source.resolve()
                for piece in source.pieces(0, source.rows, columns.read()):
                    if piece.error is not None:
                        raise piece.error
                    table, bad = without_bad(*scorer.score_columns(piece.table, columns, piece.first))
                    table.validate(full=True)
                    assert table.num_rows + len(bad) == piece.rows
                scored += 1
            except BackstoryError as error:
                assert error.code in ("DATA_LOSS", "INVALID_ARGUMENT"), error
                refused += 1
    print(f"refused {refused} scored {scored}", flush=True)


class FuzzTest(harness.WorldTest):
    def run_child(self, files):
        done = subprocess.run([sys.executable, __file__, "--child", self.world, files], capture_output=True, text=True)
        if done.returncode:
            last = done.stdout.split()[-1] if done.stdout else "?"
            kept = pathlib.Path(tempfile.mkdtemp(prefix="backstory-fuzz-")) / last
            kept.write_bytes((files / last).read_bytes())
            self.fail(f"exit {done.returncode} on {kept} (seed {SEED}): {done.stderr[-2000:]}")
        words = done.stdout.split()
        return int(words[-3]), int(words[-1])

    def test_the_good_files_are_good(self):
        corpus(self.folder)
        self.assertEqual(self.run_child(self.folder), (0, 5))

    def test_files_broken_by_hand(self):
        (good := self.folder / "good").mkdir(), (broken := self.folder / "broken").mkdir()
        count = 0
        for file in corpus(good):
            for number, data in enumerate(by_hand(file.read_bytes())):
                (broken / f"{number:03d}-{file.name}").write_bytes(data)
                count += 1
        refused, scored = self.run_child(broken)
        self.assertEqual(refused + scored, count)
        self.assertGreater(refused, count * 2 // 3)

    def test_files_broken_by_dice(self):
        (good := self.folder / "good").mkdir(), (broken := self.folder / "broken").mkdir()
        draw = random.Random(SEED)
        files = corpus(good)
        for number in range(ROUNDS):
            for file in files:
                (broken / f"{number:05d}-{file.name}").write_bytes(by_dice(file.read_bytes(), draw))
        refused, scored = self.run_child(broken)
        self.assertEqual(refused + scored, ROUNDS * len(files))
        print(f"seed {SEED}: {refused} files refused, {scored} still good enough", file=sys.stderr)
        self.assertGreater(refused, ROUNDS)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]))
    else:
        unittest.main()
