"""python -m backstory_engine.score: Parquet and Arrow files in, parts out; kills, damage and nonsense in between."""
import fcntl
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import time
import unittest

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import harness


def write_ipc(table, path, stream=False, rows=1000, **options):
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(str(path), table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


class FilesTest(harness.WorldTest):
    def run_ok(self, input, output, *more):
        return harness.score_ok(*self.flags(input, output, *more))

    def test_every_format_layout_and_part_size_gives_the_same_rows(self):
        rows = harness.make_rows(5000).append_column("bid", pa.array(range(5000)))
        with self.scorer() as scorer:
            wanted = harness.bits(scorer.score(rows, keep=["bid"]))
        files = {
            "parquet": self.write(rows, "a.parquet", row_group_size=700),
            "one row group": self.write(rows, "b.parquet", row_group_size=5000),
            "many, uncompressed": self.write(rows, "c.parquet", row_group_size=13, compression="none"),
            "arrow": write_ipc(rows, self.folder / "d.arrow"),
            "arrow, compressed": write_ipc(rows, self.folder / "e.arrow", compression="zstd"),
            "arrow stream": write_ipc(rows, self.folder / "f.arrows", stream=True),
        }
        (self.folder / "many").mkdir()
        for at in range(0, 5000, 1900):  # a folder: files in order of their names
            pq.write_table(rows.slice(at, 1900), self.folder / f"many/rows-{at:05d}.parquet", row_group_size=400)
        files["folder"] = self.folder / "many"
        for number, (name, file) in enumerate(files.items()):
            with self.subTest(name):
                summary = self.run_ok(file, f"out-{number}", "--rows-per-part", 900 + 700 * number, "--keep", "bid")
                self.assertEqual((summary["rows"], summary["scored"], summary["bad_rows"]), (5000, 5000, 0))
                self.assertEqual(harness.bits(harness.read_parts(self.folder / f"out-{number}")), wanted)
        self.run_ok(files["parquet"], "whole.parquet", "--rows-per-part", 1234, "--keep", "bid")
        self.assertEqual(harness.bits(pq.read_table(self.folder / "whole.parquet")), wanted)
        self.run_ok(files["parquet"], "whole.arrow", "--rows-per-part", 1234, "--keep", "bid")
        with pa.ipc.open_file(str(self.folder / "whole.arrow")) as file:
            self.assertEqual(harness.bits(file.read_all()), wanted)
        self.assertEqual(sorted(p.name for p in self.folder.glob("whole*")), ["whole.arrow", "whole.parquet"])

    def test_a_folder_may_hold_more_files_than_may_be_open(self):
        rows, folder = harness.make_rows(200), self.folder / "many"
        folder.mkdir()
        for at in range(200):
            pq.write_table(rows.slice(at, 1), folder / f"{at:03d}.parquet")
        few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
        summary = harness.score_ok(*self.flags(folder, "out"), preexec_fn=few)
        self.assertEqual(summary["scored"], 200)
        pq.write_table(rows.slice(0, 1).set_column(1, "item_id", pa.array(["7"])), folder / "100.parquet")
        code, _, err = harness.score(*self.flags(folder, "other"))
        self.assertEqual(code, 2)
        self.assertIn("100.parquet: column 'item_id': type string", err)

    def test_a_run_that_is_killed_again_and_again_ends_as_if_never_killed(self):
        draw = random.Random(seed := int(os.environ.get("BACKSTORY_SEED", 11)))
        users = harness.make_rows(16000)["user"].to_pylist()
        for row in range(50, 16000, 997):
            users[row] = None  # bad rows must come out once as well
        rows = harness.make_rows(16000).set_column(0, "user", pa.array(users))
        file = self.write(rows, row_group_size=1700)
        flags = ("--rows-per-part", 1000, "--max-bad-rows", 1000)
        self.run_ok(file, "calm", *flags)
        output, kills, seen = self.folder / "killed", 0, 0
        for _ in range(60):
            process = harness.command(*self.flags(file, "killed", *flags, "--resume"))
            # Killed once one more part is there: every run gets further, and none is timed.
            while process.poll() is None and len(list(output.glob("part-*"))) <= seen + draw.randint(0, 5):
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            code, _, err = harness.finish(process)
            seen = len(list(output.glob("part-*")))
            if code == 0:
                break
            self.assertEqual(code, -signal.SIGKILL, err)
            kills += 1
        print(f"killed {kills} times, seed {seed}", file=sys.stderr)
        self.assertGreater(kills, 2)
        self.run_ok(file, "killed", *flags, "--resume")
        for path in sorted((self.folder / "calm").iterdir()):
            self.assertEqual((output / path.name).read_bytes(), path.read_bytes(), path.name)
        self.assertEqual(sorted(p.name for p in output.iterdir()), sorted(p.name for p in (self.folder / "calm").iterdir()))

    def test_resume_refuses_another_run_and_two_at_once(self):
        file = self.write(harness.make_rows(3000))
        self.run_ok(file, "out")
        for more, word in [((), "--resume"), (("--resume", "--rows-per-part", 17), "rows_per_part"),
                           (("--resume", "--set", "history_rows=7"), "parameters"), (("--resume", "--scene", "x"), "scene")]:
            code, _, err = harness.score(*self.flags(file, "out", *more))
            self.assertEqual(code, 1, err)
            self.assertIn(word, err)
        self.write(harness.make_rows(3000, seed=8))
        code, _, err = harness.score(*self.flags(file, "out", "--resume"))
        self.assertEqual(code, 1)
        self.assertIn("input was", err)
        self.write(harness.make_rows(3000))
        self.assertEqual(self.run_ok(file, "out", "--resume")["resumed_parts"], 1)
        (self.folder / "other").mkdir()
        (self.folder / "other/file").write_text("mine")
        self.assertEqual(harness.score(*self.flags(file, "other"))[0], 1)
        self.assertEqual((self.folder / "other/file").read_text(), "mine")

        (self.folder / "both").mkdir()
        held = os.open(self.folder / "both", os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_EX)
        code, _, err = harness.score(*self.flags(file, "both"))
        os.close(held)
        self.assertEqual(code, 1)
        self.assertIn("another run is writing here", err)

    def test_ctrl_c_says_how_to_go_on(self):
        file = self.write(harness.make_rows(300_000))
        process = harness.command(*self.flags(file, "out", "--rows-per-part", 500))
        while not (self.folder / "out/part-00000.parquet").exists():
            self.assertIsNone(process.poll())
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        code, _, err = harness.finish(process)
        self.assertEqual(code, 130, err)
        self.assertIn("--resume", err)

    def test_bad_rows_are_listed_counted_and_say_so_by_exit_code(self):
        rows = harness.make_rows(2500)
        items = rows["item_id"].to_pylist()
        wrong = [3, 999, 1000, 2499]
        for row in wrong:
            items[row] = -row
        file = self.write(rows.set_column(1, "item_id", pa.array(items)))
        code, out, err = harness.score(*self.flags(file, "out", "--rows-per-part", 1000, "--json"))
        self.assertEqual(code, 1)
        self.assertIn("row 3: item_id: -3", err)
        self.assertEqual([json.loads(out)[k] for k in ("scored", "bad_rows")], [2496, 4])
        bad = harness.read_parts(self.folder / "out", "bad-rows")
        self.assertEqual(bad["row"].to_pylist(), wrong)
        self.assertEqual(set(bad["column"].to_pylist()), {"item_id"})
        scored = harness.read_parts(self.folder / "out")["row"].to_pylist()
        self.assertEqual(sorted(scored + wrong), list(range(2500)))
        self.assertEqual(harness.score(*self.flags(file, "fine", "--max-bad-rows", 4))[0], 0)
        code, _, err = harness.score(*self.flags(file, "few", "--max-bad-rows", 3))
        self.assertEqual(code, 1)
        self.assertIn("--max-bad-rows 3", err)
        self.assertFalse((self.folder / "few/_SUCCESS").exists())
        harness.score(*self.flags(file, "file.parquet"))
        self.assertEqual(pq.read_table(self.folder / "file.parquet.bad-rows.parquet")["row"].to_pylist(), wrong)

    def test_a_damaged_row_group_costs_its_rows_and_names_itself(self):
        rows = harness.make_rows(4000)
        file = self.write(rows, row_group_size=1000, write_page_checksum=True)
        with self.scorer() as scorer:
            wanted = scorer.score(rows)
        column = pq.ParquetFile(file).metadata.row_group(2).column(1)
        data = bytearray(file.read_bytes())
        at = column.data_page_offset + column.total_compressed_size // 2
        data[at] ^= 0xff
        file.write_bytes(data)
        code, _, err = harness.score(*self.flags(file, "out", "--rows-per-part", 1500))
        self.assertEqual(code, 1)
        for word in (str(file), "row group 2", "'item_id'"):
            self.assertIn(word, err)
        bad = harness.read_parts(self.folder / "out", "bad-rows")
        self.assertEqual(bad["row"].to_pylist(), list(range(2000, 3000)))
        keep = [*range(2000), *range(3000, 4000)]
        self.assertEqual(harness.bits(harness.read_parts(self.folder / "out")), harness.bits(wanted.take(keep)))

    def test_wrong_files_and_flags_are_refused_before_anything_is_written(self):
        good = harness.make_rows(20)
        empty, text, cut = (self.folder / name for name in ("empty.parquet", "text.parquet", "cut.parquet"))
        empty.write_bytes(b"")
        text.write_text("user,item_id,time_us\na,1,1\n")
        cut.write_bytes(self.write(good).read_bytes()[:-30])
        (self.folder / "text.arrow").write_text("not arrow at all")
        self.write(good.drop_columns(["user"]), "no-user.parquet")
        self.write(good.set_column(2, "time_us", pa.array([0.5] * 20)), "float-time.parquet")
        cases = [(1, empty, (), (str(empty), "Parquet")), (1, text, (), (str(text), "Parquet")),
                 (1, cut, (), (str(cut), "Parquet")), (1, self.folder / "text.arrow", (), ("text.arrow", "Arrow")),
                 (1, self.folder / "nonesuch.parquet", (), ("nonesuch.parquet", "no such file")),
                 (2, self.folder / "no-user.parquet", (), ("no-user.parquet", "'user'", "not in the table")),
                 (2, self.folder / "float-time.parquet", (), ("float-time.parquet", "'time_us'", "double")),
                 (2, self.folder / "rows.parquet", ("--map", "user=nonesuch"), ("'nonesuch'",)),
                 (2, self.folder / "rows.parquet", ("--map", "usr=user"), ("'usr'",)),
                 (2, self.folder / "rows.parquet", ("--keep", "user"), ("'user'",)),
                 (2, self.folder / "rows.parquet", ("--rows-per-part", "0"), ("--rows-per-part",)),
                 (2, self.folder / "rows.parquet", ("--format", "csv"), ("--format",)),
                 (2, self.folder / "rows.parquet", ("--version", "1", "--label", "stable"), ("--version",)),
                 (1, self.folder / "rows.parquet", ("--version", "9"), ("grab-tiny", "9"))]
        for code, file, more, words in cases:
            with self.subTest(file=file.name, more=more):
                got, _, err = harness.score(*self.flags(file, "out", *more))
                self.assertEqual(got, code, err)
                for word in words:
                    self.assertIn(word, err)
                self.assertNotIn("Traceback", err)
                self.assertFalse((self.folder / "out").exists())

    def test_a_damaged_model_is_exit_code_4(self):
        models = self.folder / "models"
        shutil.copytree(self.world / "models", models)
        weights = next(models.glob("*/1/*.safetensors"))
        data = bytearray(weights.read_bytes())
        data[-5] ^= 1
        weights.write_bytes(data)
        code, _, err = harness.score(*self.flags(self.write(harness.make_rows(20)), "out"), "--models", models)
        self.assertEqual(code, 4, err)
        self.assertIn(weights.name, err)

    def test_no_rows_make_a_table_of_no_rows(self):
        file = self.write(harness.make_rows(5).slice(0, 0))
        self.run_ok(file, "out.parquet")
        self.assertEqual(pq.read_table(self.folder / "out.parquet").num_rows, 0)

    def test_a_full_disk_loses_no_part_that_was_there(self):
        file = self.write(harness.make_rows(30000))
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        flags = self.flags(file, "out", "--rows-per-part", 5000, "--resume")
        code, _, err = harness.score(*flags, preexec_fn=limit)
        self.assertEqual(code, 1, err)
        self.assertRegex(err, "RESOURCE_EXHAUSTED: .*part-0000[01].*--resume")
        self.assertEqual([p.name for p in (self.folder / "out").iterdir()], ["manifest.json"])
        self.assertEqual(harness.score_ok(*flags)["scored"], 30000)


if __name__ == "__main__":
    unittest.main()
