"""Runs the shell commands of docs/guides/train-your-own.md, in order, against the built binary."""
import glob
import os
import re
import subprocess
import sys
import tempfile
import unittest

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def binary_folder():
    """Where the backstory binary is: the build tree that ctest names, or the release tree."""
    for tree in (os.environ.get("BACKSTORY_BINARY_DIR", ""), os.path.join(_ROOT, "build", "release")):
        folder = os.path.join(tree, "bin")
        if os.path.exists(os.path.join(folder, "backstory")):
            return folder
    return None


class GuideTest(unittest.TestCase):

    def test_guide_runs(self):
        folder = binary_folder()
        if folder is None:
            self.skipTest("the backstory binary is not built")
        with open(os.path.join(_ROOT, "docs", "guides", "train-your-own.md")) as file:
            blocks = re.findall(r"^```sh\n(.*?)^```$", file.read(), re.MULTILINE | re.DOTALL)
        self.assertEqual(len(blocks), 4)
        with tempfile.TemporaryDirectory() as scratch:
            path = os.pathsep.join([folder, "/usr/bin", os.environ["PATH"]])  # Debian's python3 has torch
            environment = {**os.environ, "PATH": path, "TMPDIR": scratch, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(["bash", "-euo", "pipefail", "-c", "\n".join(blocks)], cwd=_ROOT, env=environment,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            self.assertEqual(done.returncode, 0, done.stdout[-4000:])
            versions = glob.glob(os.path.join(scratch, "*", "models", "clicks", "1", "MANIFEST"))
            self.assertEqual(len(versions), 1)
            self.assertTrue(glob.glob(os.path.join(scratch, "*", "run", "history.json")))
            self.assertIn("largest difference", done.stdout)  # the engine's verdict on the goldens


if __name__ == "__main__":
    unittest.main(argv=sys.argv)
