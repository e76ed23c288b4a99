"""The GLASS twin against 18 cases of the public reference implementation, in fp32 and fp64.

Tolerances are those that tests/conformance/glass/README.md derives from the reference's own fp32 error; token lists
must be equal. Each case is rebuilt from its histories: window, tier features and retrieved sets come from
history.History.
"""
import glob
import json
import os
import unittest

import numpy as np
import torch

from models.training import tensor_file
from models.training.glass import config as glass_config
from models.training.glass import decode, history, twin

_FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "conformance", "glass")
_STATIC = ("weights", "catalogue", "relative_buckets")
CASES = sorted(path for path in glob.glob(os.path.join(_FOLDER, "*.safetensors"))
               if not any(part in os.path.basename(path) for part in _STATIC))
TOLERANCE = {torch.float32: {"memory": 5e-5, "logits": 3e-4, "loss": 2e-4, "gate_mean": 1e-5, "scores": 2e-4},
             torch.float64: dict.fromkeys(("memory", "logits", "loss", "gate_mean", "scores"), 1e-11)}


def read(name):
    return tensor_file.read_tensors(os.path.join(_FOLDER, name))


def model_of(weights_file, dtype):
    weights, metadata = read(weights_file)
    raw = json.loads(metadata["config"])
    config = glass_config.make(
        "COMPAT", d=raw["d_model"], heads=raw["heads"], d_kv=raw["d_kv"], ffn=raw["ffn"],
        encoder_layers=raw["enc_layers"], decoder_layers=raw["dec_layers"], levels=tuple(raw["levels"]),
        vocabulary=raw["vocab"], short_items=raw["short_items"], retrieved_items=raw["retrieved_items"],
        tier_edges=tuple(raw["tier_edges"]), beam=raw["beam"])
    model = twin.Glass(config).to(dtype).eval()
    model.load_weights(weights)
    return model


class Case:
    """One case: the model in a dtype, the user's history, and what must come out."""

    def __init__(self, path, dtype, models={}):  # noqa: B006 -- models are shared between cases on purpose
        self.tensors, metadata = tensor_file.read_tensors(path)
        self.what = metadata["what"]
        key = (metadata["weights"], dtype)
        if key not in models:
            models[key] = model_of(*key)
        self.model, self.dtype = models[key], dtype
        items, _ = read(metadata["catalogue"])
        self.catalogue = history.Catalogue(self.model.config, items["item.sid"], items["item.embedding"])
        self.prototype = items["prototype"]
        short = self.tensors["in.short_tokens"]
        # The case gives the short window as tokens; any item with these tokens will do, -1 where none has them.
        self.history = history.recount(self.catalogue, list(self.tensors["in.long_items"]) + [0] * 50)
        self.short = torch.from_numpy(short.copy()).unsqueeze(0)
        self.features = torch.from_numpy(self.history.tier_features()).to(dtype).unsqueeze(0)

    def retrieve(self, spelled):
        return decode.retrieve_from(self.history, self.dtype, spelled)


class ConformanceTest(unittest.TestCase):

    def close(self, case, name, actual, key=None):
        expected = torch.from_numpy(case.tensors[f"out64.{key or name}"].copy())
        error = float((actual.double() - expected).abs().max())
        bound = TOLERANCE[case.dtype]["scores" if "scores" in name else name]
        self.assertEqual(tuple(actual.shape), tuple(expected.shape), name)
        self.assertLess(error, bound, f"{name}: {case.what}")

    def check(self, path, dtype):
        case = Case(path, dtype)
        config, tensors = case.model.config, case.tensors
        np.testing.assert_allclose(case.catalogue.prototype, case.prototype, atol=1e-6)
        np.testing.assert_allclose(case.history.tier_features(), tensors["in.tier"], atol=1e-7)
        codes = torch.from_numpy(tensors["in.targets"][:, 0].copy())
        spelled = np.stack([case.history.retrieved_tokens(int(code)) for code in codes])
        np.testing.assert_array_equal(spelled, tensors["in.retrieved_tokens"])
        memory, visible = case.model.encode(case.short, case.features)
        rows = memory[0].clone()
        rows[~visible[0]] = torch.from_numpy(tensors["out64.memory"].copy()).to(dtype)[~visible[0]]
        self.close(case, "memory", rows)
        targets = torch.from_numpy(tensors["in.target_tokens"].copy()).unsqueeze(0)
        for form in (True, False):
            gates = []
            retrieved = case.retrieve(form)(codes.unsqueeze(0))
            logits = case.model.logits(case.short, case.features, targets, retrieved, gates)
            self.close(case, "logits", logits[0])
            loss = torch.nn.functional.cross_entropy(logits[0].flatten(0, 1), targets.flatten(), reduction="none")
            self.close(case, "loss", loss.reshape(-1, 3).mean(1))
            self.close(case, "gate_mean", torch.stack(gates).mean((0, 1, 3, 4)))
        forms = ((decode.search, False), (decode.search_naive, True), (decode.search_naive, False))
        for mode, prefix in (("free", "step"), ("level", "level_step")):
            for search, form in forms:
                beams = search(case.model, case.short, case.features, case.retrieve(form), 20, mode)
                for step, (tokens, score) in enumerate(beams.steps):
                    name = f"{prefix}{step + 1}"
                    np.testing.assert_array_equal(tokens[0].numpy(), tensors[f"out.{name}_tokens"], case.what)
                    self.close(case, f"{name}_scores", score[0])
        return config

    def test_there_are_18(self):
        self.assertEqual(len(CASES), 18)

    def test_relative_buckets(self):
        tensors, _ = read("relative_buckets.safetensors")
        bucket = twin.relative_bucket(torch.from_numpy(tensors["distance"].copy()), 32, 128)
        np.testing.assert_array_equal(bucket.numpy(), tensors["bucket"])

    def test_a_mistake_is_seen(self):
        """The harness itself: the wrong end of a long bucket must fail."""
        path = os.path.join(_FOLDER, "small.newest_30.safetensors")
        case = Case(path, torch.float64)
        for bucket in case.history.buckets:
            items = [row for row in case.tensors["in.long_items"]
                     if case.catalogue.sid[row, 0] == case.catalogue.sid[bucket[0], 0]] if bucket else []
            bucket.clear()
            bucket.extend(items[:30])
        codes = torch.from_numpy(case.tensors["in.targets"][:, 0].copy()).unsqueeze(0)
        targets = torch.from_numpy(case.tensors["in.target_tokens"].copy()).unsqueeze(0)
        logits = case.model.logits(case.short, case.features, targets, case.retrieve(False)(codes))
        expected = torch.from_numpy(case.tensors["out64.logits"].copy())
        self.assertGreater(float((logits[0].double() - expected).abs().max()), 0.2)


def _add(path, dtype, label):
    name = os.path.basename(path)[:-len(".safetensors")].replace(".", "_")

    def test(self):
        with torch.no_grad():
            self.check(path, dtype)

    setattr(ConformanceTest, f"test_{name}_{label}", test)


for _path in CASES:
    _add(_path, torch.float32, "fp32")
    _add(_path, torch.float64, "fp64")

if __name__ == "__main__":
    unittest.main()
