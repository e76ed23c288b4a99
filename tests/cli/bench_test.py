#!/usr/bin/env python3
"""`backstory bench kernels`, `bench model` and `bench recommend` in seconds: every promised number is there, and bad options are usage errors.
BACKSTORY_BINARY_DIR names the build tree. What is measured is nobody's business here: no time passes or fails."""
import json
import os
import pathlib
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(os.environ.get("BACKSTORY_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
BINARY = pathlib.Path(os.environ.get("BACKSTORY_BINARY_DIR", ROOT / "build/release")) / "bin/backstory"
MODEL = ["model", "--model", "grab-tiny", "--threads", "2", "--seconds", "0"]


def bench(*options):
    return subprocess.run([BINARY, "bench", *options], capture_output=True, text=True, timeout=300)


class BenchTest(unittest.TestCase):
    def report(self, *options):
        done = bench(*options, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.count("\n"), 1)
        report = json.loads(done.stdout)
        for key in ("machine", "kernel_target"):
            self.assertTrue(report[key])
        for key in ("core_bound_f32_gflops", "core_bound_bf16_gflops"):
            self.assertGreaterEqual(report[key], 0)
        return report

    def test_model_measures_every_combination(self):
        report = self.report(*MODEL, "--history", "40", "300", "--candidates", "7")
        got = [(r["precision"], r["history"], r["what"]) for r in report["results"]]
        self.assertEqual(got, [(p, n, w) for p in ("f32", "bf16") for n in (40, 300) for w in ("score", "prefill", "append")])
        self.assertEqual((report["threads"], report["candidates"]), (2, 7))
        for result in report["results"]:
            self.assertLessEqual(0, result["least_ms"])
            self.assertLessEqual(result["least_ms"], result["median_ms"])
            self.assertGreaterEqual(result["samples"], 7)
            self.assertEqual("floor_ms" in result, result["what"] != "append")
        for precision in ("f32", "bf16"):
            self.assertGreater(report[f"gemm_gflops_{precision}"], 0)
        halves = [r["kv_bytes"] for r in report["results"] if r["history"] == 300 and r["what"] == "score"]
        self.assertLess(halves[1], 0.6 * halves[0], "bf16 K/V is not about half")

    def test_the_arithmetic_is_the_algorithms(self):
        one = self.report(*MODEL, "--what", "score", "--precision", "f32", "--history", "100", "--candidates", "10")
        two = self.report(*MODEL, "--what", "score", "--precision", "f32", "--history", "100", "--candidates", "20")
        self.assertAlmostEqual(two["results"][0]["gflop"], 2 * one["results"][0]["gflop"])
        # 2 layers, 2 channels, 2 heads x 8: QK and PV of 100 more rows for 10 candidates.
        more = self.report(*MODEL, "--what", "score", "--precision", "f32", "--history", "200", "--candidates", "10")
        self.assertAlmostEqual(more["results"][0]["gflop"] - one["results"][0]["gflop"], 2 * 2 * 2 * 2 * 16 * 100 * 10 * 1e-9)

    def test_kernels_can_be_picked(self):
        report = self.report("kernels", "--only", "gemm 1 x 64", "--seconds", "0")
        self.assertEqual([c["case"] for c in report["cases"]], ["gemm 1 x 64 x 192 f32", "gemm 1 x 64 x 192 bf16"])
        for case in report["cases"]:
            self.assertGreater(case["gflops"], 0)

    def test_recommend_reports_each_rate_and_where_the_time_went(self):
        with tempfile.TemporaryDirectory() as scratch:
            at = lambda name: os.path.join(scratch, name)
            subprocess.run([BINARY, "model", "init-random", "glass-tiny", "--items", "300", "--out", at("models/glass-tiny/1")],
                           check=True, capture_output=True, timeout=60)
            server = subprocess.Popen([BINARY, "serve", "--store", at("store"), "--create-store", "--models", at("models"),
                                       "--port", "0", "--log-file", at("log"), "--device", "cpu"],
                                      stdout=subprocess.PIPE, text=True)
            try:
                ready = server.stdout.readline()
                self.assertRegex(ready, r"^ready: port \d+,")
                port = ready.split()[2].rstrip(",")
                done = bench("recommend", "--server", f"127.0.0.1:{port}", "--user-range", "1-8", "--history", "40",
                             "--item-range", "1-300", "--count", "5", "--append-rate", "50", "--rate", "50", "--rate", "100",
                             "--seconds", "0.5", "--warmup", "0.1", "--stages", "--json")
            finally:
                server.terminate()
                server.wait(timeout=30)
                server.stdout.close()
        self.assertEqual(done.returncode, 0, done.stderr)
        report = json.loads(done.stdout)
        self.assertEqual((report["users"], report["history"], report["count"], len(report["runs"])), (8, 40, 5, 2))
        for run in report["runs"]:
            self.assertEqual((run["ok"], run["errors"]), (run["arrivals"], {}))
            self.assertGreater(run["appended"], 0)
            self.assertEqual(run["append_errors"], 0)
            self.assertGreaterEqual(sum(run["state_sources"].values()), run["ok"])
            self.assertLessEqual(set(run["state_sources"]), {"hit", "extend"})
        for stage in ("queue", "state", "decode", "outside"):
            self.assertIn(stage, done.stderr)

    def test_tables_name_machine_and_bound(self):
        for options in (["kernels", "--only", "gemm 1 x 64", "--seconds", "0"], [*MODEL, "--history", "20"]):
            done = bench(*options)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("one core from registers", done.stdout)

    def test_bad_options_are_usage_errors_that_name_them(self):
        for options, word in ((["model", "--history", "0"], "--history"), (["model", "--model", "grab-9"], "grab-256"),
                              (["model", "--what", "train"], "--what"), (["model", "--precision", "int4"], "--precision"),
                              (["model", "--threads", "0"], "--threads"), (["kernels", "--seconds", "-1"], "--seconds"),
                              (["recommend", "--count", "0"], "--count")):
            done = bench(*options)
            self.assertEqual(done.returncode, 2, options)
            self.assertIn(word, done.stderr)
            self.assertEqual(done.stdout, "")


if __name__ == "__main__":
    unittest.main()
