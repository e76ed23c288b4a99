"""deploy/ray/score_job.py on real clusters of this machine: raylets, actors and kills are real, only the network is not."""
import json
import os
import pathlib
import signal
import sys
import time
import unittest

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import harness


def actors_of(pid):
    """Processes of scoring actors below `pid`: {pid}."""
    parents, found = {}, set()
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                if b"MapWorker(MapBatches(Worker))" in (entry / "cmdline").read_bytes():
                    found.add(int(entry.name))
            except (OSError, IndexError, ValueError):
                pass
    def below(child):
        while child in parents and child != pid:
            child = parents[child]
        return child == pid
    return {actor for actor in found if below(actor)}


class RayTest(harness.WorldTest):
    def job(self, input, output, *more, **options):
        return harness.command(*self.flags(input, output, "--object-store-bytes", 100 << 20, *more), module=harness.RAY_JOB,
                               **options)

    def wanted(self, rows, **options):
        with self.scorer() as scorer:
            return scorer.score(rows, bad_rows="null", **options)

    def wait_for_parts(self, process, folder, count):
        while len(list(folder.glob("part-*"))) < count:
            if process.poll() is not None:
                self.fail(f"ended early: {harness.finish(process)}")
            time.sleep(0.01)

    def test_a_worker_killed_half_way_changes_nothing(self):
        rows = harness.make_rows(120_000)
        users = rows["user"].to_pylist()
        users[7] = None
        rows = rows.set_column(0, "user", pa.array(users).dictionary_encode())  # columns of many kinds go the whole way
        rows = rows.set_column(2, "time_us", rows["time_us"].cast(pa.timestamp("us", "UTC")))
        rows = rows.append_column("candidate_numbers", pa.array([{"bid": i % 5} for i in range(120_000)]))
        rows = rows.append_column("kept", pa.array([[i, None] for i in range(120_000)]))
        file = self.write(rows, row_group_size=9000)
        flags = ("--workers", 2, "--rows-per-part", 5000, "--keep", "kept", "--max-bad-rows", 1, "--json")
        process = self.job(file, "out", *flags)
        self.wait_for_parts(process, self.folder / "out", 3)
        os.kill(victim := actors_of(process.pid).pop(), signal.SIGKILL)
        parts = len(list((self.folder / "out").glob("part-*")))
        code, out, err = harness.finish(process)
        self.assertEqual(code, 0, err)
        print(f"killed worker {victim} with {parts} parts there", file=sys.stderr)
        summary = json.loads(out)
        self.assertEqual((summary["scored"], summary["bad_rows"]), (119_999, 1))
        self.assertLess(parts, summary["parts"])
        scored = harness.read_parts(self.folder / "out")
        keep = [i for i in range(120_000) if i != 7]
        self.assertEqual(harness.bits(scored), harness.bits(self.wanted(rows, keep=["kept"]).take(keep)))
        self.assertEqual(harness.read_parts(self.folder / "out", "bad-rows")["row"].to_pylist(), [7])
        for path in (self.folder / "out").glob("part-*"):  # one shard, one part: all of a user's rows are in one
            mine = set(pq.read_table(path)["user"].to_pylist())
            others = [p for p in (self.folder / "out").glob("part-*") if p != path]
            self.assertTrue(all(mine.isdisjoint(pq.read_table(p)["user"].to_pylist()) for p in others))

    def test_a_killed_job_goes_on(self):
        rows = harness.make_rows(60_000)
        data = bytearray(self.write(rows, row_group_size=5000, write_page_checksum=True).read_bytes())
        column = pq.ParquetFile(self.folder / "rows.parquet").metadata.row_group(3).column(0)
        data[column.data_page_offset + column.total_compressed_size // 2] ^= 0xff  # and reports a damaged row group
        file = self.folder / "rows.parquet"
        file.write_bytes(data)
        flags = ("--workers", 1, "--rows-per-part", 3000, "--max-bad-rows", 5000, "--json", "--resume")
        process = self.job(file, "out", *flags, start_new_session=True)
        self.wait_for_parts(process, self.folder / "out", 2)
        os.killpg(process.pid, signal.SIGKILL)  # the driver; its cluster dies with it
        harness.finish(process)
        there = {p.name: p.read_bytes() for p in (self.folder / "out").glob("part-*")}
        code, out, err = harness.finish(self.job(file, "out", *flags[:1], 2, *flags[2:]))
        self.assertEqual(code, 0, err)
        summary = json.loads(out)
        self.assertEqual(summary["resumed_parts"], len(there))
        self.assertLess(len(there), summary["parts"])
        for name, content in there.items():
            self.assertEqual((self.folder / "out" / name).read_bytes(), content)
        keep = [*range(15_000), *range(20_000, 60_000)]
        self.assertEqual(harness.bits(harness.read_parts(self.folder / "out")), harness.bits(self.wanted(rows).take(keep)))
        bad = harness.read_parts(self.folder / "out", "bad-rows")
        self.assertEqual(sorted(bad["row"].to_pylist()), list(range(15_000, 20_000)))
        self.assertIn("row group 3", bad["reason"][0].as_py())

    def test_a_worker_without_the_model_is_named_and_a_small_cluster_refused(self):
        from ray.cluster_utils import Cluster
        file = self.write(harness.make_rows(60_000))
        options = {"num_cpus": 2, "object_store_memory": 100 << 20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args={**options, "env_vars": {"MODELS": str(self.world / "models")}})
        try:
            cluster.add_node(**options, env_vars={"MODELS": "/nonesuch"})
            small = harness.finish(self.job(file, "small", "--address", cluster.address, "--workers", 4))
            code, _, err = harness.finish(self.job(file, "out", "--address", cluster.address, "--workers", 3, "--models",
                                                   "$MODELS"))
        finally:
            cluster.shutdown()
        self.assertEqual(small[0], 1)
        self.assertIn("--workers 4: the cluster has 4 CPUs, wanted 5", small[2])
        self.assertEqual(code, 1, err)
        self.assertIn("NOT_FOUND", err)
        self.assertIn("/nonesuch", err)
        self.assertIn("on node", err)
        self.assertNotIn("Traceback", err)

    def test_wrong_flags_are_refused(self):
        file = self.write(harness.make_rows(100))
        code, _, err = harness.finish(self.job(file, "out.parquet"))
        self.assertEqual(code, 2)
        self.assertIn("folder", err)
        code, _, err = harness.finish(self.job(file, "out", "--workers", 0))
        self.assertEqual(code, 2)


if __name__ == "__main__":
    unittest.main()
