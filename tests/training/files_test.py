"""Files: tensors, configurations, shards with faults, and the version directory that the exporter writes."""
import glob
import hashlib
import json
import os
import tempfile
import unittest

import numpy as np

from models.training import config as grab_config
from models.training import export, goldens, make_goldens, report, shards, sweep, tensor_file, textproto, train
from tests.training import synthetic

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class TensorFileTest(unittest.TestCase):

    def test_round_trip(self):
        r = np.random.default_rng(0)
        tensors = {"a": r.normal(size=(3, 5)), "b": r.normal(size=(2, 0)).astype(np.float32),
                   "c": np.array([-2**63, 2**63 - 1]), "d": np.frombuffer(b"xyz", np.uint8),
                   "e": r.normal(size=(4, 6)).astype(np.float32).T, "f": np.int32(7).reshape(())}
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "x.safetensors")
            tensor_file.write_tensors(path, tensors, {"key": "value"})
            again, metadata = tensor_file.read_tensors(path)
        self.assertEqual(metadata, {"key": "value"})
        self.assertEqual(set(again), set(tensors))
        for name, value in tensors.items():
            np.testing.assert_array_equal(again[name], value, err_msg=name)
            self.assertEqual((again[name].dtype, again[name].shape), (value.dtype, value.shape))

    def test_damage_is_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "x.safetensors")
            tensor_file.write_tensors(path, {"a": np.arange(6.0)})
            with open(path, "rb") as file:
                whole = file.read()
            wrong = whole.replace(b'"shape":[6]', b'"shape":[7]')
            for name, data in (("short", whole[:5]), ("no data", whole[:-8]), ("long header", b"\xff" * 8 + whole[8:]),
                               ("shape", wrong), ("dtype", whole.replace(b'"F64"', b'"F99"'))):
                with self.subTest(damage=name):
                    with open(path, "wb") as file:
                        file.write(data)
                    with self.assertRaises(ValueError):
                        tensor_file.read_tensors(path)


class ConfigTest(unittest.TestCase):

    def test_text_forms(self):
        parsed = textproto.parse('a: 1 b { c: "x\\"y" \'z\' }  # note\nd: [1, 2.5, -3e2] e: true f: NAME b: { c: "" },')
        self.assertEqual(parsed, [("a", 1), ("b", [("c", 'x"yz')]), ("d", 1), ("d", 2.5), ("d", -300.0), ("e", True),
                                  ("f", "NAME"), ("b", [("c", "")])])
        self.assertEqual(textproto.parse(textproto.write(parsed)), parsed)
        for bad in ("a 1", "a: {", "a: }", "b { c: 1", "a: @", "{ }"):
            with self.assertRaises(ValueError, msg=bad):
                textproto.parse(bad)

    def test_model_text_round_trip(self):
        for name, settings in make_goldens.VARIANTS.items():
            config = grab_config.from_text(make_goldens.model_text(name, **settings))
            self.assertEqual(grab_config.from_text(grab_config.to_text(config)), config)
            self.assertEqual(config.channels, len(settings["channels"]))
        with self.assertRaisesRegex(ValueError, "unknown field depth"):
            grab_config.from_text("depth: 3")
        with self.assertRaisesRegex(ValueError, "twice"):
            grab_config.from_text("d: 3 d: 3")

    def test_drop_removes_fields_and_their_tensors(self):
        config = grab_config.from_text(synthetic.CONFIG)
        less = grab_config.select_fields(config, {"f.item", "p.class", "dense.noise", "channel.clicked"})
        shapes = grab_config.weight_shapes(less)
        self.assertEqual((less.channels, less.dense), (1, ["count"]))
        self.assertEqual(shapes["tok.f.ln.g"], (6 + 1,))
        self.assertNotIn("tok.table.class", shapes)
        self.assertNotIn("w.l0.c1.wq", shapes)
        self.assertEqual(grab_config.weight_shapes(config)["tok.f.ln.g"], (2 * 6 + 2,))

    def test_settings(self):
        self.assertEqual(train.parse_settings(["lr=0.5", "norm=pre", "layers=3"]),
                         {"lr": 0.5, "norm": "pre", "layers": 3})


class ShardTest(unittest.TestCase):

    def test_shards_join_in_order(self):
        with tempfile.TemporaryDirectory() as folder:
            written = synthetic.write(folder, users=5, rows=10)
            data = shards.Dataset(folder, grab_config.from_text(synthetic.CONFIG))
            np.testing.assert_array_equal(data.label, np.concatenate([s["f.label"] for s in written]))
            self.assertEqual(data.users[0], "user-0")
            self.assertEqual(data.users[5], "user-1000")
            self.assertEqual(len(data.user), data.target_offsets[-1])
            second = written[1]
            row = second["p1.offsets"][-1] - 1
            begin, end = second["p1.category.offsets"][row:row + 2]
            found = data.ids["p1"]["category"][-1]
            self.assertEqual(found[found >= 0].tolist(), second["p1.category.ids"][begin:end].tolist())

    def test_faults_are_named(self):
        config = grab_config.from_text(synthetic.CONFIG)
        with tempfile.TemporaryDirectory() as folder:
            with self.assertRaisesRegex(ValueError, "no .*shard"):
                shards.Dataset(folder, config)
            synthetic.write(folder, users=5, rows=10)
            small = synthetic.CONFIG.replace('table: "item" vocab: 41', 'table: "item" vocab: 9')
            with self.assertRaisesRegex(ValueError, "item: id .* outside the table of 9 rows"):
                shards.Dataset(folder, grab_config.from_text(small))
            with self.assertRaisesRegex(ValueError, "n_act"):
                shards.Dataset(folder, grab_config.from_text(synthetic.CONFIG.replace("n_act: 4", "n_act: 2")))
            tensor_file.write_tensors(os.path.join(folder, "tokens-9.safetensors"), synthetic.tensors(3, 5),
                                      {"config": "other"})
            with self.assertRaisesRegex(ValueError, "another configuration"):
                shards.Dataset(folder, config)


class VersionTest(unittest.TestCase):

    def test_manifest_lists_everything(self):
        """The shipped version and the golden versions are what their MANIFEST says."""
        folders = glob.glob(os.path.join(_ROOT, "tests", "conformance", "grab_e2e", "*", "1"))
        self.assertEqual(len(folders), len(make_goldens.VARIANTS))
        for folder in folders:
            with open(os.path.join(folder, "MANIFEST")) as file:
                lines = file.read().splitlines()
            self.assertEqual(lines[0], "backstory-manifest 1 sha256")
            for line in lines[1:]:
                digest, size, name = line.split(" ")
                with open(os.path.join(folder, name), "rb") as file:
                    data = file.read()
                self.assertEqual((hashlib.sha256(data).hexdigest(), str(len(data))), (digest, size), name)

    def test_stored_goldens_are_what_the_script_draws(self):
        """Configurations, tensor shapes and cases drawn again equal the stored ones."""
        for seed, (name, settings) in enumerate(make_goldens.VARIANTS.items()):
            folder = os.path.join(_ROOT, "tests", "conformance", "grab_e2e", name, "1")
            config = grab_config.from_text(make_goldens.model_text(name, **settings))
            with open(os.path.join(folder, "model.textproto")) as file:
                self.assertEqual(file.read(), grab_config.to_text(config))
            stored, _ = tensor_file.read_tensors(os.path.join(folder, "weights-00001-of-00001.safetensors"))
            self.assertEqual({k: v.shape for k, v in stored.items()}, grab_config.weight_shapes(config))
            with open(os.path.join(folder, "goldens.jsonl")) as file:
                cases = [json.loads(line) for line in file]
            drawn = goldens.CaseMaker(config, seed + 50).standard()
            self.assertEqual([{k: v for k, v in case.items() if k != "logits"} for case in cases], drawn)

    def test_a_finished_version_is_immutable(self):
        config = grab_config.from_text(synthetic.CONFIG)
        weights = {name: np.zeros(shape, np.float32) for name, shape in grab_config.weight_shapes(config).items()}
        with tempfile.TemporaryDirectory() as folder:
            export.write_version(folder, config, weights, [{"name": "x", "logits": [[0.0]]}], [("like", 0.5, -1.25)])
            with open(os.path.join(folder, "calibration", "1.textproto")) as file:
                entries = dict(textproto.parse(file.read()))["entries"]
            self.assertEqual(entries, [("task", "like"), ("a", 0.5), ("b", -1.25)])
            with self.assertRaisesRegex(ValueError, "immutable"):
                export.write_version(folder, config, weights, [])
        weights["w.head.b1"] = np.full_like(weights["w.head.b1"], np.nan)
        with tempfile.TemporaryDirectory() as folder, self.assertRaisesRegex(ValueError, "w.head.b1"):
            export.write_version(folder, config, weights, [])


class SweepTest(unittest.TestCase):

    def test_job_and_report(self):
        with tempfile.TemporaryDirectory() as folder:
            data_folder, out = os.path.join(folder, "data"), os.path.join(folder, "out")
            os.mkdir(data_folder), os.mkdir(out)
            synthetic.write(data_folder, users=12, rows=25)
            base = grab_config.from_text(synthetic.CONFIG)
            rows = []
            for kind, seed in (("din", 1), ("din", 2), ("grab", 1), ("grab", 2)):
                job = {"name": f"{kind}-{seed}", "kind": kind, "seed": seed, "test": True, "keep": kind == "grab",
                       "settings": {"epochs": 1, "d": 8, "heads": 2, "layers": 1}}
                rows.append(sweep.run_job(job, base, data_folder, "cpu", out, {}))
            with open(os.path.join(out, "results.jsonl"), "w") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
            _, metadata = tensor_file.read_tensors(os.path.join(out, "grab-1.weights.safetensors"))
            self.assertEqual(grab_config.from_text(metadata["config"]).d_head, 4)
            data = shards.Dataset(data_folder, base)
            result = report.evaluate_runs(data, report.load_runs(out), replicates=20)
            self.assertEqual(result["targets"], int((data.split == shards.TEST).sum()))
            self.assertEqual(len(result["metrics"]["grab"]["auc"]["seeds"]), 2)
            self.assertIn("| DIN |", report.markdown(result, report.NAMES))


if __name__ == "__main__":
    unittest.main()
