"""Runs the plain shell blocks of docs/guides/train-generative.md, in order, on the bundled ratings.

The block that needs PyPI is a `console` block; text vectors by its encoder are replaced by random ones.
"""
import glob
import os
import re
import subprocess
import tempfile
import unittest

from models.training.glass import export

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_TEXT = """python3 -c "
import numpy as np
from models.training import tensor_file
rows = np.random.default_rng(0).normal(size=(9742, 70)).astype('f')
tensor_file.write_tensors('$work/data/text.safetensors', {'embedding': rows})"
"""


class GuideTest(unittest.TestCase):

    def test_guide_runs(self):
        with open(os.path.join(_ROOT, "docs", "guides", "train-generative.md")) as file:
            blocks = re.findall(r"^```sh\n(.*?)^```$", file.read(), re.MULTILINE | re.DOTALL)
        self.assertEqual(len(blocks), 5)
        with tempfile.TemporaryDirectory() as scratch:
            environment = {**os.environ, "PATH": os.pathsep.join(["/usr/bin", os.environ["PATH"]]), "TMPDIR": scratch,
                           "OMP_NUM_THREADS": "1"}
            script = "\n".join([blocks[0], _TEXT] + blocks[1:])
            done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=_ROOT, env=environment,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            self.assertEqual(done.returncode, 0, done.stdout[-4000:])
            folder, = glob.glob(os.path.join(scratch, "*", "models", "glass-ml", "1"))
            version = export.Version(folder)
            self.assertEqual(len(version.item_id), 9742)
            self.assertTrue(glob.glob(os.path.join(scratch, "*", "run", "checkpoint.pt")))
            self.assertLess(sum(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder)), 5_000_000)


if __name__ == "__main__":
    unittest.main()
