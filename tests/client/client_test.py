"""The Python client against the real server: the wheel is built, unpacked and imported as a user would have it."""
import asyncio
import datetime
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import unittest
import zipfile

ROOT = pathlib.Path(os.environ.get("BACKSTORY_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
BINARY = pathlib.Path(os.environ.get("BACKSTORY_BINARY_DIR", ROOT / "build/release")) / "bin/backstory"
START = 1_600_000_000_000_000
MINUTE = 60_000_000
LATER = START + 400_000 * MINUTE


def build_wheel(folder):
    """Builds from a copy of what the wheel needs, so that the source tree stays as it is."""
    copy = folder / "tree"
    for part in ("serving/client", "proto", "deploy/client_service_config.json"):
        (copy / part).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-r", str(ROOT / part), str(copy / part)], check=True)
    built = subprocess.run([sys.executable, "setup.py", "-q", "bdist_wheel", "-d", str(folder / "dist")],
                           cwd=copy / "serving/client", capture_output=True, text=True)
    if built.returncode:
        raise RuntimeError(built.stdout + built.stderr)
    (wheel,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    sys.path.insert(0, str(folder / "site"))


class Server:
    def __init__(self, folder):
        model = folder / "models/grab-tiny/1"
        subprocess.run([BINARY, "model", "init-random", "grab-tiny", "--seed", "5", "--out", model], check=True,
                       capture_output=True)
        port_file = folder / "port"
        self.log = (folder / "log").open("w")
        self.process = subprocess.Popen(
            [BINARY, "serve", "--store", folder / "store", "--create-store", "--models", folder / "models", "--port", "0",
             "--port-file", port_file], stdout=subprocess.DEVNULL, stderr=self.log)
        for _ in range(3000):
            if port_file.exists() and port_file.read_text().split():
                break
            if self.process.poll() is not None:
                raise RuntimeError((folder / "log").read_text())
            time.sleep(0.01)
        self.address = f"127.0.0.1:{port_file.read_text().split()[0]}"

    def stop(self):
        self.process.terminate()
        self.log.close()
        return self.process.wait(30)


class ClientTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scratch = tempfile.TemporaryDirectory(prefix="backstory-client-")
        folder = pathlib.Path(cls.scratch.name)
        build_wheel(folder)
        global backstory
        import backstory
        cls.server = Server(folder)
        cls.client = backstory.Client(cls.server.address, namespace="client", timeout=20)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        code = cls.server.stop()
        cls.scratch.cleanup()
        assert code == 0, f"the server ended with {code}"

    def events(self, count, first=1):
        shown = [backstory.Event(first + 2 * i, START + i * MINUTE, 1 + i % 20) for i in range(count)]
        clicks = [backstory.Event(e.event_id + 1, e.time_us + MINUTE // 2, e.item_id, action="click",
                                  exposure_id=e.event_id) for e in shown[::3]]
        return shown + clicks

    def test_append_is_idempotent_and_rank_sees_it(self):
        events = self.events(30)
        first, again = self.client.append("ann", events), self.client.append("ann", events)
        self.assertEqual((first.accepted, first.rejected), (len(events), 0))
        self.assertEqual((again.accepted, again.duplicate, again.seq), (0, len(events), first.seq))
        result = self.client.rank("ann", [3, 4, 5], now=LATER, explain_top=2, timings=True)
        (task, column), = result.probabilities.items()
        self.assertEqual(len(column), 3)
        self.assertTrue(all(0 < p < 1 for p in column))
        self.assertGreaterEqual(result.rows_visible[0], 30)
        self.assertEqual(len(result.explanations), 3)
        self.assertIn("score", result.timings_us)
        self.assertEqual(result.best(1)[0][1], max(column))
        self.assertFalse(result.unknown_user)

    def test_a_bad_event_refuses_the_batch_and_a_conflict_only_itself(self):
        good, bad = backstory.Event(1, START, 7), backstory.Event(2, -5, 7)
        with self.assertRaises(backstory.BackstoryError) as caught:
            self.client.append("bea", [good, bad])
        self.assertEqual(caught.exception.code, "INVALID_ARGUMENT")
        self.assertIn("events[1].time_us", caught.exception.message)
        self.assertEqual(self.client.append("bea", [good]).accepted, 1)  # nothing of the refused batch was kept
        result = self.client.append("bea", [backstory.Event(1, START, 8), backstory.Event(3, START, 9)])
        self.assertEqual((result.accepted, result.conflict), (1, 1))
        self.assertEqual(result.refusals[0][0], 0)

    def test_errors_name_the_field(self):
        with self.assertRaises(backstory.BackstoryError) as caught:
            self.client.rank("ann", [], now=LATER)
        self.assertEqual(caught.exception.code, "INVALID_ARGUMENT")
        self.assertIn("candidates", caught.exception.message)
        with self.assertRaises(backstory.BackstoryError) as caught:
            self.client.rank("ann", [1], now=LATER, model=backstory.Model("nonesuch"))
        self.assertEqual(caught.exception.code, "NOT_FOUND")
        with self.assertRaisesRegex(TypeError, "user"):
            self.client.rank(1.5, [1])
        with self.assertRaisesRegex(ValueError, "time zone"):
            self.client.rank("ann", [1], now=datetime.datetime(2020, 1, 1))

    def test_a_table_scores_every_row_as_of_its_own_time(self):
        self.client.append("cyd", self.events(40))
        rows = {"user": ["cyd", "ann", "cyd", "cyd"], "item": [3, 4, 5, 3],
                "t": [LATER, LATER, LATER, START + 10 * MINUTE]}
        scores = self.client.score_table(rows, user="user", item="item", time="t")
        for row, p in enumerate(scores):
            single = self.client.rank(rows["user"][row], [rows["item"][row]], now=rows["t"][row])
            self.assertEqual([p], list(single.probabilities.values())[0], f"row {row} differs from its own call")
        self.assertNotEqual(scores[0], scores[3], "the same pair at another time sees another past")
        with self.assertRaisesRegex(backstory.TableError, "nonesuch"):
            self.client.score_table(rows, user="user", item="nonesuch")
        with self.assertRaisesRegex(backstory.TableError, "row 1"):
            self.client.score_table({"user": ["a", "b"], "item": [1, "x"]}, user="user", item="item")

    def test_a_large_table_comes_back_whole_and_in_order(self):
        count = 3000
        rows = {"user": [f"u{i % 300}" for i in range(count)], "item": [1 + i % 50 for i in range(count)],
                "t": [LATER + i % 7 for i in range(count)]}
        scores = self.client.score_table(rows, user="user", item="item", time="t")
        self.assertEqual(len(scores), count)
        again = self.client.score_table({k: v[::-1] for k, v in rows.items()}, user="user", item="item", time="t")
        self.assertEqual(scores, again[::-1])

    def test_async_gives_the_same_scores(self):
        self.client.append("dan", self.events(20))

        async def run():
            async with backstory.AsyncClient(self.server.address, namespace="client", timeout=20) as client:
                results = await asyncio.gather(*(client.rank("dan", [i], now=LATER) for i in range(1, 9)))
                table = await client.score_table({"u": ["dan"] * 8, "i": list(range(1, 9)), "t": [LATER] * 8},
                                                 user="u", item="i", time="t")
                return [list(r.probabilities.values())[0][0] for r in results], table

        singles, table = asyncio.run(run())
        together = list(self.client.rank("dan", list(range(1, 9)), now=LATER).probabilities.values())[0]
        self.assertEqual(singles, together)
        self.assertEqual(table, together)

    def test_catalog_and_delete(self):
        version = self.client.upsert_items([backstory.Item(900, title="A film", categories=["Drama"], year=1995)])
        self.assertEqual(self.client.upsert_items([backstory.Item(901, title="Another")]), version + 1)
        self.assertEqual(self.client.rank("ann", [900, 999], now=LATER).unknown_items, [1])
        self.client.append("eve", self.events(5))
        self.assertGreater(self.client.delete_user("eve"), 0)
        self.assertEqual(self.client.append("eve", self.events(5)).accepted, 0)  # replays of what was deleted


if __name__ == "__main__":
    unittest.main()
