"""The commands that README and docs show: each names options that the binary has, and those of README and runbook run.

Guides with a walk of their own (training, experiments, batch scoring, the Python client) are run by tests beside their room.
"""
import glob
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

_ROOT = os.environ.get("BACKSTORY_SOURCE_DIR") or os.path.dirname(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_BIN = os.path.join(os.environ.get("BACKSTORY_BINARY_DIR") or os.path.join(_ROOT, "build", "release"), "bin")
_BINARY = os.path.join(_BIN, "backstory")


def read(path):
    with open(os.path.join(_ROOT, path), encoding="utf-8") as file:
        return file.read()


def run(command, **options):
    environment = {**os.environ, "PATH": os.pathsep.join([_BIN, "/usr/bin", os.environ["PATH"]]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=_ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=300, **options)


def pages():
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=_ROOT, capture_output=True, text=True, check=False).stdout
    return listed.split() or [os.path.relpath(p, _ROOT) for p in glob.glob(os.path.join(_ROOT, "**", "*.md"), recursive=True)]


def commands_of(text):
    """Every `backstory ...` of a page: inline code and lines of fenced blocks, continued lines joined."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for block in fenced:
        for line in block.replace("\\\n", " ").splitlines():
            line = re.split(r"\s#|[|;&>]", line.strip())[0]
            if re.match(r"(\$ )?(build/release/bin/)?backstory ", line):
                yield line[line.index("backstory "):]
    prose = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`(backstory [^`]+)`", prose):
        yield " ".join(code.split())


class Help:
    """Options of each subcommand, asked from the binary once."""

    def __init__(self):
        self._texts = {}

    def text(self, words):
        if words not in self._texts:
            self._texts[words] = run([_BINARY, *words, "--help"]).stdout
        return self._texts[words]

    def subcommands(self, words):
        match = re.search(r"^Subcommands:\n((?:  .*\n)+)", self.text(words), re.MULTILINE)
        return set(re.findall(r"^  (\S+)", match.group(1), re.MULTILINE)) if match else set()


@unittest.skipUnless(os.path.exists(_BINARY), "the backstory binary is not built")
class EveryCommandExists(unittest.TestCase):

    def test_subcommands_and_options(self):
        helps, seen = Help(), 0
        for page in pages():
            for command in commands_of(read(page)):
                words = re.sub(r"[\[\]]", " ", command).split()[1:]
                path = ()
                while len(path) < len(words) and words[len(path)] in helps.subcommands(path):
                    path += (words[len(path)],)
                if not path:
                    self.assertTrue(words[0].startswith("-") or words[0] == "COMMAND", f"{page}: {command}")
                    continue
                seen += 1
                for option in re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", " ".join(words)):
                    self.assertRegex(helps.text(path), rf"(?<![\w-]){option}(?![\w-])", f"{page}: {command}")
        self.assertGreater(seen, 30, "the pages' commands were not found")

    def test_the_check_finds_wrong_ones(self):
        found = list(commands_of("See `backstory store verify --stor X` or\n```sh\nbackstory rank --usr 1 # why\n```\n"))
        self.assertEqual(sorted(found), ["backstory rank --usr 1", "backstory store verify --stor X"])


@unittest.skipUnless(os.path.exists(_BINARY), "the backstory binary is not built")
class ReadmeWalk(unittest.TestCase):

    def test_own_data(self):
        blocks = re.findall(r"^```sh\n(.*?)^```$", read("README.md"), re.MULTILINE | re.DOTALL)
        self.assertEqual(len(blocks), 2)
        self.assertIn("deploy/quickstart.sh", blocks[0])
        with tempfile.TemporaryDirectory() as scratch:
            os.environ["TMPDIR"] = scratch
            done = run(["bash", "-euo", "pipefail", "-c", blocks[1]])
        self.assertEqual(done.returncode, 0, done.stdout[-4000:])
        self.assertRegex(done.stdout, r"model clicks/1 · seq \d+ · state rebuild")


@unittest.skipUnless(os.path.exists(_BINARY), "the backstory binary is not built")
class RunbookWalk(unittest.TestCase):
    """The operator's commands against a real server and store, in the order of the runbook."""

    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory()
        self.at = lambda name: os.path.join(self.scratch.name, name)
        shutil.copytree(os.path.join(_ROOT, "models/zoo"), self.at("models"))
        self.ok(f"ingest --store {self.at('store')} --preset movielens --events deploy/data/ml-latest-small/ratings.csv "
                "--items deploy/data/ml-latest-small/movies.csv")
        self.server = None

    def tearDown(self):
        if self.server is not None:
            self.stop()
        self.scratch.cleanup()

    def ok(self, command, code=0):
        done = run([_BINARY, *shlex.split(command)])
        self.assertEqual(done.returncode, code, f"{command}\n{done.stdout[-2000:]}")
        return done.stdout

    def serve(self):
        if os.path.exists(self.at("port")):
            os.remove(self.at("port"))
        self.server = subprocess.Popen(
            [_BINARY, "serve", "--store", self.at("store"), "--models", self.at("models"), "--port", "0", "--admin-port", "0",
             "--metrics-port", "0", "--port-file", self.at("port"), "--checkpoint-dir", self.at("checkpoints")],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (os.path.exists(self.at("port")) and read(self.at("port")).count("\n") >= 2):
            self.assertIsNone(self.server.poll(), "the server ended")
            time.sleep(0.05)
        ports = read(self.at("port")).split()
        return f"--server 127.0.0.1:{ports[0]}", f"--server 127.0.0.1:{ports[1]}"

    def stop(self):
        self.server.send_signal(signal.SIGTERM)
        code = self.server.wait(timeout=60)
        self.server = None
        return code

    def test_walk(self):
        self.ok(f"check --store {self.at('store')} --models {self.at('models')}")
        server, admin = self.serve()
        self.assertIn("grab-ml", self.ok(f"admin list {admin}"))
        # Release a model: a second version with the first one's files.
        shutil.copytree(self.at("models/grab-ml/1"), self.at("models/grab-ml/2"))
        self.ok(f"admin load {admin} --model grab-ml --version-id 2")
        self.ok(f"admin label {admin} --model grab-ml --label canary --version-id 2")
        self.ok(f"admin label {admin} --model grab-ml --label stable --version-id 2")
        self.assertIn("grab-ml/2", self.ok(f"rank {server} --user 1 --items 1,2,3"))
        self.ok(f"admin label {admin} --model grab-ml --label stable --version-id 1 --at-once")
        self.assertIn("grab-ml/1", self.ok(f"rank {server} --user 1 --items 1,2,3"))
        # Back up, and forget a user.
        self.ok(f"admin checkpoint {admin} --name monday")
        copy = self.at("checkpoints/monday")
        self.ok(f"store verify --store {copy}")
        self.ok(f"history delete {server} --user 1 --all --yes")
        self.assertIn("state empty", self.ok(f"rank {server} --user 1 --items 1,2,3"))
        self.assertEqual(self.stop(), 0)
        self.ok(f"store compact --store {self.at('store')}")
        self.ok(f"store verify --store {self.at('store')}")
        # Damage: refused with code 4, verify says so, the checkpoint takes its place.
        tables = sorted(glob.glob(self.at("store/*.sst")), key=os.path.getsize)
        os.truncate(tables[-1], os.path.getsize(tables[-1]) // 2)
        refused = run([_BINARY, "serve", "--store", self.at("store"), "--models", self.at("models"), "--port", "0"])
        self.assertEqual(refused.returncode, 4, refused.stdout[-2000:])
        self.ok(f"store verify --store {self.at('store')}", code=4)
        self.ok(f"store repair --store {self.at('store')} --from-backup {copy}")
        self.assertEqual(json.loads(self.ok(f"store verify --store {self.at('store')} --json"))["problems"], [])
        server, _ = self.serve()
        self.assertNotIn("state empty", self.ok(f"rank {server} --user 1 --items 1,2,3"))
        self.assertEqual(self.stop(), 0)


if __name__ == "__main__":
    unittest.main()
