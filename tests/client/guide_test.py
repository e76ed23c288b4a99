"""Runs every command of docs/guides/python-client.md: the shell blocks before the first Python block, the Python
blocks as one program, the rest of the shell blocks."""
import os
import pathlib
import re
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(os.environ.get("BACKSTORY_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
BUILD = pathlib.Path(os.environ.get("BACKSTORY_BINARY_DIR", ROOT / "build/release"))


class Guide(unittest.TestCase):
    def test_every_command_succeeds(self):
        text = (ROOT / "docs/guides/python-client.md").read_text(encoding="utf-8")
        blocks = re.findall(r"^```(sh|python)\n(.*?)^```$", text, re.M | re.S)
        first = next(i for i, (kind, _) in enumerate(blocks) if kind == "python")
        before = [body for kind, body in blocks[:first]]
        after = [body for kind, body in blocks[first:] if kind == "sh"]
        program = "".join(body for kind, body in blocks if kind == "python")
        self.assertGreaterEqual(len(blocks), 8)
        with tempfile.TemporaryDirectory(prefix="backstory-guide-") as work:
            work = pathlib.Path(work)
            tree = work / "tree"  # building the wheel leaves files beside its sources
            for part in ("serving/client", "proto", "deploy/client_service_config.json"):
                (tree / part).parent.mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "-r", str(ROOT / part), str(tree / part)], check=True)
            (work / "program.py").write_text(program, encoding="utf-8")
            script = ["set -e -o pipefail", "trap 'test -e server.pid && kill $(cat server.pid) 2>/dev/null || true' EXIT",
                      *before, "/usr/bin/python3 program.py", *after]
            env = dict(os.environ, BACKSTORY_ROOT=str(tree), PATH=f"{BUILD}/bin:{os.environ['PATH']}", PYTHONPATH="")
            done = subprocess.run(["bash", "-c", "\n".join(script)], cwd=work, env=env, capture_output=True, text=True,
                                  timeout=300)
        self.assertEqual(done.returncode, 0, done.stdout[-4000:] + done.stderr[-4000:])
        for said in ("INVALID_ARGUMENT - candidates.item_ids", "NOT_FOUND - no model was named and the server has 0 generative models", "20 answers"):
            self.assertIn(said, done.stdout)


if __name__ == "__main__":
    unittest.main()
