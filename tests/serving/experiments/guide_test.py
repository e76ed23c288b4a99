#!/usr/bin/env python3
"""Runs every command of docs/guides/experiments.md, in order, and checks what they promise.

BACKSTORY_BINARY_DIR names the build tree; the commands find `backstory` on the PATH and the checkout in BACKSTORY_ROOT.
"""
import glob
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))
BUILD = os.environ.get("BACKSTORY_BINARY_DIR", os.path.join(ROOT, "build", "release"))
GUIDE = os.path.join(ROOT, "docs", "guides", "experiments.md")


def blocks():
    with open(GUIDE, encoding="utf-8") as f:
        return re.findall(r"^```sh\n(.*?)^```$", f.read(), re.M | re.S)


class Guide(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.work = cls.temporary.name
        cls.env = dict(os.environ, BACKSTORY_ROOT=ROOT, PATH=os.path.join(BUILD, "bin") + ":" + os.environ["PATH"])
        script = "set -e -o pipefail\n" + "\n".join(f"echo '== block {n}'\n{b}" for n, b in enumerate(blocks()))
        if os.environ.get("BACKSTORY_TRANSCRIPT"):  # the commands and what they print, for a reader
            script = "exec 2>&1\n" + script.replace("set -e", "set -v -e", 1)
        cls.done = subprocess.run(["bash", "-c", script], cwd=cls.work, env=cls.env, capture_output=True, text=True,
                                 timeout=400)
        if os.environ.get("BACKSTORY_TRANSCRIPT"):
            with open(os.environ["BACKSTORY_TRANSCRIPT"], "w", encoding="utf-8") as f:
                f.write(cls.done.stdout)

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def command(self, *words):
        return subprocess.run(["backstory", *words], cwd=self.work, env=self.env, capture_output=True, text=True,
                              timeout=200)

    def read(self, kind):
        done = self.command("experiment", kind, "ramped.textproto", "--experiment", "short-history", "--exposures",
                            "exposures", "--outcomes", "outcomes.jsonl", "--key-file", "unit.key", "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def test_every_command_succeeds(self):
        self.assertEqual(self.done.returncode, 0, self.done.stdout[-4000:] + self.done.stderr[-4000:])
        self.assertGreaterEqual(len(blocks()), 8)

    def test_the_report_finds_the_effect_that_was_put_in(self):
        report = self.read("report")
        fixed = report["differences"]["short"]["fixed"]
        always = report["differences"]["short"]["always_valid"]
        self.assertLess(fixed["low"], -0.02)
        self.assertGreater(fixed["high"], -0.02)
        self.assertLess(always["high"], 0, "and the always-valid interval excludes zero")
        self.assertLess(always["low"], fixed["low"])
        self.assertFalse(report["ratio"]["mismatch"])
        for arm in report["arms"]:
            self.assertLess(arm["pcoc_low"], 1.0)
            self.assertGreater(arm["pcoc_high"], 1.0)

    def test_aa_finds_nothing_where_nothing_is(self):
        aa = self.read("aa")
        self.assertTrue(aa["pre_period"])
        self.assertGreater(aa["arms"]["short"]["p"], 0.01)
        self.assertGreater(aa["rerandomised_false_positives"], 0.02)
        self.assertLess(aa["rerandomised_false_positives"], 0.08)

    def test_the_server_logged_what_it_assigned(self):
        lines = []
        for path in sorted(glob.glob(os.path.join(self.work, "live", "*.jsonl"))):
            with open(path, encoding="utf-8") as f:
                lines += [json.loads(line) for line in f]
        exposures = [e for e in lines if e["type"] == "exposure"]
        finals = {(e["run"], e["id"]) for e in lines if e["type"] == "final" and e["status"] == "OK"}
        self.assertEqual(len({e["unit_hash"] for e in exposures}), 40, "the holdout exposes every user")
        self.assertEqual({e["reason"] for e in exposures}, {"holdout", "assigned"})
        arms = {e["arm"] for e in exposures if e["experiment"] == "short-history"}
        self.assertEqual(arms, {"control", "short"})
        for exposure in exposures:
            self.assertIn((exposure["run"], exposure["id"]), finals)
            self.assertNotIn("user-", json.dumps(exposure), "no raw id")

    def test_replay_is_equal_and_the_other_arm_is_not(self):
        def replay(*words):
            done = self.command("replay", "--store", "store", "--models", os.path.join(ROOT, "models/zoo"), "--log",
                                "requests.jsonl", "--json", *words)
            self.assertEqual(done.returncode, 0, done.stderr)
            return json.loads(done.stdout)

        same, other = replay(), replay("--set", "history_rows=256")
        self.assertEqual((same["requests"], same["equal"]), (40, 40))
        self.assertGreater(other["equal"], 0, "who had 256 rows already sees no change")
        self.assertGreater(other["different"], 0, "who saw all 300 does")

    def test_lint_says_where(self):
        with open(os.path.join(self.work, "ramped.textproto"), encoding="utf-8") as f:
            text = f.read().replace('value: "256"', 'value: "-1"')
        with open(os.path.join(self.work, "bad.textproto"), "w", encoding="utf-8") as f:
            f.write(text)
        done = self.command("experiment", "lint", "bad.textproto")
        self.assertEqual(done.returncode, 3)
        line = 1 + text[:text.index('value: "-1"')].count("\n")
        self.assertIn(f'bad.textproto:{line}: domain[0].layer[0].experiment[0].arm[1].parameters["history_rows"]: parameter '
                      'history_rows: "-1" is not an integer', done.stdout)

    def test_explain_names_every_step(self):
        done = self.command("experiment", "explain", "ramped.textproto", "--user", "user-7", "--json")
        path = json.loads(done.stdout)["path"]
        self.assertEqual([line.split(":")[0] for line in path], ["holdout", "domain", "layer length"])


if __name__ == "__main__":
    if not os.access(os.path.join(BUILD, "bin", "backstory"), os.X_OK):
        sys.exit(f"{BUILD}/bin/backstory is not built")
    unittest.main()
