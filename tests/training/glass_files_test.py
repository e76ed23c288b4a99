"""GLASS versions: export, reading back, goldens; study jobs and reports."""
import json
import os
import shutil
import subprocess
import tempfile
import unittest

import numpy as np

from models.training import tensor_file
from models.training.glass import export, goldens, jobs, report, sid, study, train, trainer
from models.training.glass import config as glass_config
from tests.training import glass_synthetic as synthetic

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class VersionTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.folder = cls.temporary.name
        cls.sid = synthetic.write(cls.folder, users=20)
        model = {**synthetic.SMALL, "beam": 6}
        del model["levels"], model["embedding_width"]
        options = {"epochs": 1, "batch": 32, "targets": 2, "validation_max": 20, "beam": 6}
        for name, without in (("full", []), ("plain", ["tier", "search"])):
            train.run({"data": cls.folder, "sid": cls.sid, "model": model, "options": options, "dropout": 0.0,
                       "without": without}, os.path.join(cls.folder, name), "cpu")

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def version(self, name="full", rules=("RATING:4",)):
        out = os.path.join(tempfile.mkdtemp(dir=self.folder), "1")
        return out, export.export(os.path.join(self.folder, name), self.folder, self.sid, out, "glass-test", rules)

    def test_round_trip(self):
        """What is read back scores every golden case as it was written, and holds what was trained."""
        for name in ("full", "plain"):
            with self.subTest(run=name):
                out, version = self.version(name)
                weights, _ = tensor_file.read_tensors(os.path.join(self.folder, name, "weights.safetensors"))
                for key, value in version.model.named_weights().items():
                    np.testing.assert_array_equal(value.detach().numpy(), weights[key])
                cases = goldens.read_cases(os.path.join(out, "goldens.jsonl"))
                self.assertGreaterEqual(len(cases), 14)
                for case in cases:
                    found = version.scorer.expect(case)
                    for key in ("short_items", "long_items", "sids", "items", "item_sids"):
                        self.assertEqual(found[key], case["expect"][key], key)
                    np.testing.assert_allclose(found["log_probability"], case["expect"]["log_probability"], atol=1e-12)
                with open(os.path.join(out, "MANIFEST")) as file:
                    listed = [line.split()[2] for line in file.read().splitlines()[1:]]
                self.assertEqual(listed, sorted(set(os.listdir(out)) - {"MANIFEST"}))

    def test_goldens_use_every_rule(self):
        out, version = self.version()
        cases = {case["name"]: case for case in goldens.read_cases(os.path.join(out, "goldens.jsonl"))}
        self.assertEqual(cases["empty"]["expect"]["short_items"], [])
        self.assertTrue(cases["empty"]["expect"]["items"])
        self.assertEqual(cases["long_1"]["expect"]["long_items"], 1)
        for name in ("ignored_actions", "unknown_items", "as_of_is_exclusive"):
            case = cases[name]
            self.assertLess(case["expect"]["long_items"] + 5, len(case["events"]), name)
        for case in cases.values():
            seen = {event["item_id"] for event in case["events"] if event["time_us"] < case["as_of_us"]}
            if case["exclude_seen"]:
                self.assertFalse(seen & set(case["expect"]["items"]))
            self.assertLessEqual(len(case["expect"]["items"]), case["count"])
            if case["name"] != "empty":
                self.assertGreaterEqual(case["expect"]["min_gap"], goldens.GAP_MIN)

    def test_stored_catalogue_takes_new_items(self):
        out, version = self.version()
        embedding, tensors = synthetic.catalogue()
        np.testing.assert_array_equal(sid.assign(version.quantiser, embedding[:9]), version.catalogue.sid[:9])

    def test_the_schema_knows_every_field(self):
        """protoc reads what config.to_text writes, of both profiles and with every optional part."""
        protoc = shutil.which("protoc")
        if not protoc:
            self.skipTest("no protoc")
        _, version = self.version()
        for config in (version.config, synthetic.config(profile="PAPER", tier_edges=(), neighbours=2)):
            folder = os.path.join(_ROOT, "proto")
            done = subprocess.run([protoc, "--encode=backstory.model.v1.GlassModel", f"-I{folder}",
                                   "backstory/model/v1/glass.proto"], input=glass_config.to_text(config).encode(),
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            self.assertEqual(done.returncode, 0, done.stderr.decode())
            self.assertGreater(len(done.stdout), 50)

    def test_faults(self):
        out, version = self.version()
        with self.assertRaisesRegex(ValueError, "immutable"):
            export.export(os.path.join(self.folder, "full"), self.folder, self.sid, out, "glass-test", [])
        items, _ = tensor_file.read_tensors(os.path.join(out, "items.safetensors"))
        changed = items["item.sid"].copy()
        changed[0, 2] ^= 1
        tensor_file.write_tensors(os.path.join(out, "items.safetensors"), {**items, "item.sid": changed})
        with self.assertRaisesRegex(ValueError, "sid_version"):
            export.Version(out)
        weights = {k: v.detach().numpy() for k, v in version.model.named_weights().items()}
        weights["tier.b1"] = weights["tier.b1"] * np.nan
        with tempfile.TemporaryDirectory() as folder, self.assertRaisesRegex(ValueError, "tier.b1"):
            export.write_version(folder, version.config, weights, {}, {}, [])
        with self.assertRaisesRegex(ValueError, "ascending"):
            export.items_tensors(version.config, np.array([3, 3]), np.zeros((2, 3)), None, np.zeros(2))


class StudyTest(unittest.TestCase):

    def test_jobs_to_report(self):
        """A whole study in miniature: jobs are drawn, run and reported, and a broken job does not end the others."""
        with tempfile.TemporaryDirectory() as folder:
            path = synthetic.write(folder, users=15)
            os.rename(path, os.path.join(folder, "sid-64.safetensors"))
            drawn = jobs.make("tiny", folder, steps=4, seeds=2)
            self.assertEqual([job["name"] for job in drawn[:5]],
                             ["tiny-full-0", "tiny-tiger-0", "tiny-notier-0", "tiny-nosearch-0", "tiny-sasrec-0"])
            more = jobs.make("tiny", folder, steps=4, seeds=0, remedies=True)
            self.assertEqual([job["name"] for job in more], [f"tiny-{remedy}_{variant}-0" for remedy in jobs.REMEDIES for variant in ("full", "tiger")])
            self.assertFalse(any(job["test"] for job in more))
            self.assertEqual([job["dropout"] for job in more if "before" in job["name"]], [0.2, 0.2])
            out = os.path.join(folder, "study")
            os.mkdir(out)
            small = {key: value for key, value in synthetic.SMALL.items() if key not in ("levels", "embedding_width")}
            for job in drawn:
                if job.get("model"):
                    job["model"] = small
                if job.get("options"):
                    job["options"].update({"epochs": 1, "batch": 16, "validation_max": 8, "epoch_share": 0.1})
                job["test_beam"] = 6
            broken = {**drawn[0], "name": "tiny-broken-0", "data": "/nowhere"}
            rows = [study._one(job, out, "cpu") for job in [broken] + drawn]
            self.assertIn("error", rows[0])
            self.assertFalse([row["error"] for row in rows[1:] if "error" in row])
            self.assertTrue(os.path.exists(os.path.join(out, "tiny-full-0", "weights.safetensors")))
            self.assertFalse(os.path.exists(os.path.join(out, "tiny-tiger-0", "weights.safetensors")))
            log = train.data.Log(folder, synthetic.catalogue()[1]["sid"], synthetic.config())
            result = report.evaluate_study(report.load(out, "tiny"), report.Targets(log))
            self.assertEqual(len(result["metrics"]["full"]["hit@10"]["seeds"]), 2)
            self.assertEqual(result["metrics"]["popularity"]["hit@10"]["spread"], None)
            self.assertEqual(sum(row["targets"] for row in result["by_history"]), result["targets"])
            text = report.markdown(result)
            self.assertIn("| without both (TIGER) |", text)
            json.dumps(result)

    def test_bootstrap(self):
        user = np.repeat(np.arange(50), 4)
        difference = np.full(200, 0.25)
        self.assertEqual(report.bootstrap(user, difference), (0.25, 0.25, 0.25))
        r = np.random.default_rng(0)
        mean, low, high = report.bootstrap(user, r.normal(0, 1, 200))
        self.assertTrue(low < mean < high and low < 0 < high)

    def test_steps_are_what_was_asked(self):
        with tempfile.TemporaryDirectory() as folder:
            synthetic.write(folder, users=60)
            log, _ = tensor_file.read_tensors(os.path.join(folder, "log.safetensors"))
            for steps in (40, 300):
                options = jobs._options(log, steps, 8, 0.0)
                per_epoch = trainer.steps_per_epoch(int((log["event.split"] == 0).sum() * 0.6), options)
                self.assertTrue(0.5 * steps <= per_epoch * options["epochs"] <= 2 * steps)


if __name__ == "__main__":
    unittest.main()
