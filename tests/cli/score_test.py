#!/usr/bin/env python3
"""`backstory score` on real histories: killed and resumed, on a full disk, with bad rows, in any order, on any number of
threads, and blind for what came later. BACKSTORY_BINARY_DIR names the build tree; BACKSTORY_TEST_SEED repeats a run."""
import csv
import fcntl
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

ROOT = pathlib.Path(os.environ.get("BACKSTORY_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
BINARY = pathlib.Path(os.environ.get("BACKSTORY_BINARY_DIR", ROOT / "build/release")) / "bin/backstory"
DATA = ROOT / "deploy/data/ml-latest-small"
SEED = int(os.environ.get("BACKSTORY_TEST_SEED", random.randrange(1 << 30)))
USERS, KILLS = 60, 20


def ingest(store, events):
    subprocess.run([BINARY, "ingest", "--store", store, "--namespace", "movielens", "--preset", "movielens", "--events", events,
                    "--items", DATA / "movies.csv"], check=True, capture_output=True)


def write_csv(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class ScoreTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        print(f"repeat with BACKSTORY_TEST_SEED={SEED}", flush=True)
        cls.temporary = tempfile.TemporaryDirectory()
        cls.work = pathlib.Path(cls.temporary.name)
        header, *ratings = read_csv(DATA / "ratings.csv")
        cls.ratings = [row for row in ratings if int(row[0]) <= USERS]
        write_csv(cls.work / "ratings.csv", header, cls.ratings)
        ingest(cls.work / "store", cls.work / "ratings.csv")
        cls.rows = cls.ratings[:6000]
        cls.header = header
        write_csv(cls.work / "rows.csv", header, cls.rows)

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def setUp(self):
        self.random = random.Random(SEED)
        self.default_rows = "rows.csv"
        self.folder = self.work / self.id().rsplit(".", 1)[1]
        self.folder.mkdir()

    def command(self, output, *more, rows=None, store="store"):
        return [str(word) for word in (
            BINARY, "score", "--store", self.work / store, "--models", ROOT / "models/zoo", "--namespace", "movielens", "--map",
            "user=userId,item=movieId,time=timestamp", "--time-unit", "s", "--keep", "rating", "--input",
            self.work / (rows or self.default_rows),
            "--output", output, *more)]

    def score(self, output, *more, code=0, **where):
        done = subprocess.run(self.command(output, *more, **where), capture_output=True, text=True)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return done

    # ---- R29: kill -9 at random points; the result is that of an uninterrupted run, each row once ----

    def kill_and_resume(self, output, watched, *more):
        """Kills runs until KILLS of them died, lets one finish, and says how often one died half way."""
        died = half_way = 0
        while died < KILLS:
            before = len(list(watched.glob("part-*"))) if watched.exists() else 0
            process = subprocess.Popen(self.command(output, "--resume", *more), stdout=subprocess.DEVNULL,
                                       stderr=subprocess.PIPE)
            wanted = before + self.random.randrange(3)  # parts that appear first, then some milliseconds
            while process.poll() is None and (len(list(watched.glob("part-*"))) if watched.exists() else 0) < wanted:
                time.sleep(0.001)
            time.sleep(self.random.random() * 0.02)
            process.send_signal(signal.SIGKILL)
            _, errors = process.communicate()
            if process.returncode == 0:
                return died, half_way
            self.assertEqual(process.returncode, -signal.SIGKILL, errors)
            died += 1
            half_way += len(list(watched.glob("part-*"))) > before if watched.exists() else 0
        done = self.score(output, "--resume", "--json", *more, code=1)
        self.assertGreater(json.loads(done.stdout)["resumed_parts"], 0)
        return died, half_way

    def spoil(self, name):
        """Rows, every 97th of them bad."""
        rows = [row if n % 97 else ["", *row[1:]] for n, row in enumerate(self.rows)]
        write_csv(self.work / name, self.header, rows)
        return sum(1 for n in range(len(rows)) if n % 97 == 0)

    def test_kill_and_resume_a_folder(self):
        bad = self.spoil("folder-rows.csv")
        options = ("--rows-per-part", "50")
        whole, resumed = self.folder / "whole", self.folder / "resumed"
        summary = json.loads(self.score(whole, "--json", *options, rows="folder-rows.csv", code=1).stdout)
        self.assertEqual((summary["rows"], summary["scored"], summary["bad_rows"]), (6000, 6000 - bad, bad))
        self.default_rows = "folder-rows.csv"
        died, half_way = self.kill_and_resume(resumed, resumed, *options)
        self.assertEqual(died, KILLS)
        self.assertGreater(half_way, 0, "no run died half way: no test")
        self.assertEqual(snapshot(resumed), snapshot(whole))
        rows = [int(row[0]) for part in sorted(resumed.glob("*-rows-*.csv")) + sorted(resumed.glob("part-*.csv"))
                for row in read_csv(part)[1:]]
        self.assertEqual(sorted(rows), list(range(6000)), "each row once")

    def test_kill_and_resume_a_file(self):
        self.spoil("file-rows.csv")
        self.default_rows = "file-rows.csv"
        whole, resumed = self.folder / "whole.jsonl", self.folder / "resumed.jsonl"
        options = ("--rows-per-part", "50")
        self.score(whole, *options, code=1)
        self.kill_and_resume(resumed, self.folder / "resumed.jsonl.parts", *options)
        self.assertEqual(resumed.read_bytes(), whole.read_bytes())
        self.assertEqual(pathlib.Path(f"{resumed}.bad-rows.jsonl").read_bytes(),
                         pathlib.Path(f"{whole}.bad-rows.jsonl").read_bytes())
        self.assertEqual(sorted(path.name for path in self.folder.iterdir()),
                         ["resumed.jsonl", "resumed.jsonl.bad-rows.jsonl", "whole.jsonl", "whole.jsonl.bad-rows.jsonl"])

    # ---- What must not change a score ----

    def test_order_threads_and_parts_change_no_bit(self):
        write_csv(self.work / "some.csv", self.header, self.rows[:1500])
        shuffled = list(enumerate(self.rows[:1500]))
        self.random.shuffle(shuffled)
        write_csv(self.work / "shuffled.csv", self.header, [row for _, row in shuffled])
        runs = [subprocess.Popen(self.command(*words, rows=rows), stdout=subprocess.DEVNULL) for words, rows in (
            ((self.folder / "two.csv", "--threads", "2"), "some.csv"),
            ((self.folder / "one.csv", "--threads", "1", "--rows-per-part", "333", "--cache-bytes", "1048576"), "some.csv"),
            ((self.folder / "shuffled.csv", "--threads", "2", "--rows-per-part", "400"), "shuffled.csv"))]
        self.assertEqual([run.wait() for run in runs], [0, 0, 0], "three processes share the store")
        two = read_csv(self.folder / "two.csv")
        self.assertEqual(read_csv(self.folder / "one.csv"), two)
        for (row, _), scored in zip(shuffled, read_csv(self.folder / "shuffled.csv")[1:]):
            self.assertEqual(scored[1:], two[row + 1][1:])

    def test_the_future_changes_no_bit(self):
        """A store that holds only what came before a moment gives the same scores of that moment."""
        times = sorted(int(row[3]) for row in self.ratings)
        cut = times[len(times) // 2]
        write_csv(self.work / "before.csv", self.header, [row for row in self.ratings if int(row[3]) < cut])
        ingest(self.work / "store-before", self.work / "before.csv")
        users = sorted({row[0] for row in self.ratings})
        write_csv(self.work / "at-cut.csv", self.header, [[user, str(1 + 7 * n), "0", str(cut)] for n in range(40)
                                                          for user in users])
        self.score(self.folder / "all.csv", rows="at-cut.csv")
        self.score(self.folder / "before.csv", rows="at-cut.csv", store="store-before")
        every, before = read_csv(self.folder / "all.csv"), read_csv(self.folder / "before.csv")
        unknown = every[0].index("unknown_user")
        self.assertGreater(sum(int(row[6]) for row in every[1:]), 0, "somebody has a past")
        for row_all, row_before in zip(every, before):
            row_all[unknown] = row_before[unknown]  # a user whose first event comes later is known to one store only
            self.assertEqual(row_all, row_before)

    # ---- What goes wrong ----

    def test_a_full_disk_is_said_and_resumed_from(self):
        if os.geteuid() != 0:
            self.skipTest("a size-limited tmpfs needs root")
        disk = self.folder / "disk"
        disk.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", disk], capture_output=True).returncode:
            self.skipTest("mounting a tmpfs is not allowed here")
        try:
            options = ("--rows-per-part", "200")
            done = self.score(disk / "out", *options, code=1)
            self.assertIn("No space left on device", done.stderr)
            self.assertIn("--resume goes on from here", done.stderr)
            left = len(list((disk / "out").glob("part-*.csv")))
            self.assertGreater(left, 0)
            self.assertLess(left, 30)
            self.assertEqual(list((disk / "out").glob("*.tmp")), [])
            subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
            done = self.score(disk / "out", "--resume", "--json", *options)
            self.assertEqual(json.loads(done.stdout)["resumed_parts"], left)
            self.score(self.folder / "whole", *options)
            self.assertEqual(snapshot(disk / "out"), snapshot(self.folder / "whole"))
        finally:
            subprocess.run(["umount", "-l", disk], check=False)

    def test_bad_rows_are_listed_and_the_exit_code_says_so(self):
        rows = [list(row) for row in self.rows[:50]]
        rows[3][0], rows[7][1], rows[9][3], rows[11][3] = "", "", "soon", "-5"
        write_csv(self.work / "bad.csv", self.header, [*rows[:20], rows[20][:2], *rows[21:]])
        done = self.score(self.folder / "out", rows="bad.csv", code=1)
        self.assertIn("5 bad rows, listed in bad-rows files", done.stderr)
        bad = [row[:4] for row in read_csv(self.folder / "out/bad-rows-00000.csv")[1:]]
        self.assertEqual(bad, [["3", "5", "user", "missing"], ["7", "9", "item_id", "missing"],
                               ["9", "11", "time_us", "'soon', a number needed"],
                               ["11", "13", "time_us", "-5000000, must be within 1..4611686018427387903 microseconds"],
                               ["20", "22", "", "2 fields, the header has 4"]])
        self.assertIn("bad.csv:5: user: missing", done.stderr)
        self.assertEqual(len(read_csv(self.folder / "out/part-00000.csv")), 46)
        self.assertEqual(json.loads((self.folder / "out/_SUCCESS").read_text())["bad_rows"], 5)
        self.score(self.folder / "five", "--max-bad-rows", "5", rows="bad.csv")
        done = self.score(self.folder / "four", "--max-bad-rows", "4", "--rows-per-part", "25", rows="bad.csv", code=1)
        self.assertIn("5 bad rows in the first 25, --max-bad-rows 4", done.stderr)
        self.assertFalse((self.folder / "four/_SUCCESS").exists())
        self.score(self.folder / "four", "--max-bad-rows", "5", "--rows-per-part", "25", "--resume", rows="bad.csv")

    def test_json_lines_give_the_same_scores(self):
        with (self.work / "some.jsonl").open("w") as file:
            for user, item, rating, moment in self.rows[:300]:
                file.write(json.dumps({"userId": int(user), "movieId": int(item), "rating": float(rating),
                                       "timestamp": int(moment)}) + "\n")
        write_csv(self.work / "first.csv", self.header, self.rows[:300])
        self.score(self.folder / "from-json.csv", rows="some.jsonl")
        self.score(self.folder / "from-csv.csv", rows="first.csv")
        self.assertEqual((self.folder / "from-json.csv").read_bytes(), (self.folder / "from-csv.csv").read_bytes())
        self.score(self.folder / "lines.jsonl", rows="some.jsonl")
        for line, record in zip((self.folder / "lines.jsonl").read_text().splitlines(),
                                read_csv(self.folder / "from-csv.csv")[1:]):
            value = json.loads(line)
            self.assertEqual([str(value["user"]), str(value["item_id"]), value["time_us"], float(value["rating"])],
                             [record[1], record[2], int(record[3]), float(record[-1])])
            (logit,) = [number for key, number in value.items() if key.startswith("raw_logit.")]
            self.assertEqual(logit, float(record[5]))

    def test_another_run_is_refused_by_name(self):
        write_csv(self.work / "ten.csv", self.header, self.rows[:10])
        out = self.folder / "out"
        self.score(out, rows="ten.csv")
        self.assertIn("holds a run already", self.score(out, rows="ten.csv", code=1).stderr)
        self.score(out, "--resume", "--threads", "1", "--cache-bytes", "2000000", rows="ten.csv")
        for more, named in ((("--set", "history_rows=9"), "parameters/history_rows was \"1000000\", is now \"9\""),
                            (("--rows-per-part", "7"), "rows_per_part was 100000, is now 7"),
                            (("--scene", "feed"), "scene was \"\", is now \"feed\"")):
            self.assertIn(named, self.score(out, "--resume", *more, rows="ten.csv", code=1).stderr)
        write_csv(self.work / "ten.csv", self.header, self.rows[1:11])
        self.assertIn("cannot go on: input/", self.score(out, "--resume", rows="ten.csv", code=1).stderr)
        lock = os.open(out, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        self.assertIn("another run is writing here", self.score(out, "--resume", rows="ten.csv", code=1).stderr)
        os.close(lock)

    def test_exit_codes(self):
        write_csv(self.work / "few.csv", self.header, self.rows[:3])
        for more, named in ((("--map", "scene=page"), "no column 'page'"), (("--map", "usr=x"), "'usr' is no field"),
                            (("--keep", "rank"), "no column 'rank' to keep"), (("--set", "history_row=1"), "did you mean"),
                            (("--rows-per-part", "0"), "--rows-per-part must be within"), (("--scene", "s" * 65), "scene has 65 bytes"),
                            (("--format", "xml"), "--format")):
            self.assertIn(named, self.score(self.folder / "none", *more, rows="few.csv", code=2).stderr)
        self.assertIn("No such file", self.score(self.folder / "none", rows="absent.csv", code=1).stderr)
        self.assertIn("no store in", self.score(self.folder / "none", rows="few.csv", store="absent", code=1).stderr)
        self.assertIn("no version 9", self.score(self.folder / "none", "--version", "9", rows="few.csv", code=1).stderr)
        models = self.folder / "models"
        shutil.copytree(ROOT / "models/zoo", models)
        (weights,) = models.glob("grab-ml/*/weights-*.safetensors")
        with weights.open("r+b") as file:
            file.seek(weights.stat().st_size // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))
        command = self.command(self.folder / "none", rows="few.csv")
        command[command.index("--models") + 1] = str(models)
        done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual(done.returncode, 4, done.stderr)
        self.assertFalse((self.folder / "none").exists(), "nothing is made by a run that cannot begin")


if __name__ == "__main__":
    unittest.main()
