#!/usr/bin/env python3
"""Runs the commands of docs/guides/batch-scoring.md up to where it leaves CSV for Parquet, in order. BACKSTORY_BINARY_DIR
names the build tree; the commands find `backstory` on the PATH and the checkout in BACKSTORY_ROOT."""
import csv
import json
import os
import pathlib
import re
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(os.environ.get("BACKSTORY_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[3]))
BUILD = pathlib.Path(os.environ.get("BACKSTORY_BINARY_DIR", ROOT / "build/release"))
GUIDE = ROOT / "docs/guides/batch-scoring.md"


def blocks():
    text = GUIDE.read_text(encoding="utf-8")
    beyond = re.search(r"^## .*(Parquet|Ray|Python)", text, re.M)
    return re.findall(r"^```sh\n(.*?)^```$", text[:beyond.start() if beyond else None], re.M | re.S)


class Guide(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.work = pathlib.Path(cls.temporary.name)
        env = dict(os.environ, BACKSTORY_ROOT=str(ROOT), PATH=f"{BUILD / 'bin'}:{os.environ['PATH']}")
        script = "set -e -o pipefail\n" + "\n".join(f"echo '== block {n}'\n{b}" for n, b in enumerate(blocks()))
        cls.done = subprocess.run(["bash", "-c", script], cwd=cls.work, env=env, capture_output=True, text=True, timeout=300)

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def test_every_command_succeeds(self):
        self.assertEqual(self.done.returncode, 0, self.done.stdout[-4000:] + self.done.stderr[-4000:])
        self.assertGreaterEqual(len(blocks()), 6)

    def test_every_rating_has_a_score(self):
        with (self.work / "ratings.csv").open() as file:
            ratings = list(csv.DictReader(file))
        with (self.work / "scores.csv").open() as file:
            scores = list(csv.DictReader(file))
        self.assertEqual([(s["user"], s["item_id"], s["rating"]) for s in scores],
                         [(r["userId"], r["movieId"], r["rating"]) for r in ratings])
        summary = json.loads((self.work / "scores/_SUCCESS").read_text())
        self.assertEqual((summary["scored"], summary["bad_rows"]), (len(ratings), 0))

    def test_the_bad_row_is_named(self):
        with (self.work / "checked.csv.bad-rows.csv").open() as file:
            (bad,) = csv.DictReader(file)
        self.assertEqual((bad["line"], bad["column"], bad["reason"]), ("5", "user", "missing"))


if __name__ == "__main__":
    unittest.main()
