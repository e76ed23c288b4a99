"""What the exporter writes the engine loads, and answers every golden case as the twin did: beams, items, log-probabilities."""
import json
import os
import subprocess
import tempfile
import unittest

from tests.training import glass_random_version

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_BINARY = os.path.join(os.environ.get("BACKSTORY_BINARY_DIR") or os.path.join(_ROOT, "build", "release"), "bin", "backstory")


class EngineTest(unittest.TestCase):

    def verify(self, **fields):
        with tempfile.TemporaryDirectory() as folder:
            out = os.path.join(folder, "glass-tiny", "1")
            glass_random_version.write(out, **fields)
            done = subprocess.run([_BINARY, "model", "verify", out, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                  text=True, check=False)
            self.assertEqual(done.returncode, 0, done.stderr)
            return json.loads(done.stdout)

    def test_every_kind_of_version(self):
        for fields in ({}, {"profile": "PAPER"}, {"neighbours": 2, "neighbour_below": 4}, {"tier_edges": ()},
                       {"retrieved_items": 0}, {"profile": "PAPER", "tier_edges": (), "retrieved_items": 0},
                       {"long_items": 30, "seed": 3}):
            with self.subTest(**fields):
                report = self.verify(**fields)
                self.assertEqual(report["goldens"]["cases"], 14)
                self.assertLess(report["goldens"]["worst"], 1e-4)
                self.assertEqual(report["items"], 90)


if __name__ == "__main__":
    unittest.main()
