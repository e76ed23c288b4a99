"""Runs the commands of docs/guides/batch-scoring.md, the parts on Parquet, Python and Ray, after those that make the store
and the CSV scores (the rest: tests/serving/batch/guide_test.py)."""
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

import pyarrow.parquet as pq

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import harness

GUIDE = harness.ROOT / "docs/guides/batch-scoring.md"


def blocks():
    """The commands of sections 1, 2 and 6 on, in order. The module is there already: its build is left out."""
    sections = re.split(r"^## ", GUIDE.read_text(encoding="utf-8"), flags=re.M)[1:]
    for section in sections:
        if int(section.split(".")[0]) in (1, 2) or int(section.split(".")[0]) >= 6:
            for block in re.findall(r"^```sh\n(.*?)^```$", section, re.M | re.S):
                yield "\n".join(line for line in block.splitlines() if "serving/python/build.sh" not in line)


class GuideTest(unittest.TestCase):
    def test_every_command_succeeds(self):
        script = "set -e -o pipefail\n" + "\n".join(f"echo '== block {n}'\n{block}" for n, block in enumerate(blocks()))
        with tempfile.TemporaryDirectory(prefix="backstory-guide-") as folder:
            env = dict(os.environ, BACKSTORY_ROOT=str(harness.ROOT), VENV=sys.prefix,
                       PATH=f"{harness.BINARY.parent}:{os.environ['PATH']}")
            done = subprocess.run(["bash", "-c", script], cwd=folder, env=env, capture_output=True, text=True, timeout=300)
            if transcript := os.environ.get("BACKSTORY_TRANSCRIPT"):
                pathlib.Path(transcript).write_text(script + "\n\n---- output\n" + done.stdout + "\n---- stderr\n" + done.stderr)
            self.assertEqual(done.returncode, 0, done.stdout[-3000:] + done.stderr[-3000:])
            self.assertIn("scene", done.stdout)  # the error that table.py shows
            training = pq.read_table(pathlib.Path(folder) / "training.parquet")
            self.assertGreater(training.num_rows, 300)
            self.assertEqual(len(list((pathlib.Path(folder) / "day-scores").glob("part-*"))) > 1, True)


if __name__ == "__main__":
    unittest.main()
