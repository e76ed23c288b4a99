"""The packed training form: equal to serving one request at a time, blind to what serving cannot know."""
import os
import tempfile
import unittest

import numpy as np
import torch

from models.training import config as grab_config
from models.training import shards, tensor_file, trainer, twin
from tests.training import synthetic


def build(config, seed=3):
    model = twin.Grab(config, grab_config.weight_shapes(config), seed=seed, embedding_std=0.5).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():  # no zeros, so that every bias and codebook shows
            p += 0.2 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return model


def packed(model, data, **options):
    """Logits of all targets, from several padded batches."""
    everything = data.split.copy()
    data.split[:] = shards.TEST
    index, logits = trainer.predict(model, data, shards.TEST, {**trainer.DEFAULTS, "pairs_max": 40_000, **options})
    data.split[:] = everything
    assert np.array_equal(index, np.arange(len(everything)))
    return logits


def served(model, data, target):
    """The logit of one target from what a server would hold at its time."""
    config, user = model.config, data.user[target]
    now, x_p = int(data.targets["time_us"][target]), []
    columns = {name: [] for name in ("time_us", "action", "tie", "closed_us")}
    for c in range(config.channels):
        begin, end = data.row_offsets[c][user:user + 2]
        rows = torch.arange(begin, end)
        rows = rows[data.rows[c]["time_us"][rows] < now]
        for name, listed in columns.items():
            listed.append(data.rows[c][name][rows])
        x_p.append(model.embed("p", {k: v[rows] for k, v in data.ids[f"p{c}"].items()}))
    one = slice(target, target + 1)
    x_f = model.embed("f", {k: v[one] for k, v in data.ids["f"].items()}, data.dense[one])
    cache, _ = model.encode_history(x_p, columns["time_us"], columns["action"], columns["tie"])
    return float(model.score(cache, x_f, columns["time_us"], columns["action"], columns["tie"], now,
                             int(data.targets["tie"][target]), columns["closed_us"]))


class PackedTest(unittest.TestCase):
    variants = {"plain": {}, "pre": {"norm": "PRE"}, "latent": {"latent": 5},
                "windows": {"window_rows": 6, "window_sec": 20_000}, "alone": {"target_mixing": "false"}}

    def load(self, folder, settings=None):
        text = synthetic.CONFIG + "".join(f"{k}: {v}\n" for k, v in (settings or {}).items())
        return shards.Dataset(folder, grab_config.from_text(text), dtype=torch.float64)

    def test_packed_equals_serving(self):
        for name, settings in self.variants.items():
            with self.subTest(variant=name), tempfile.TemporaryDirectory() as folder, torch.no_grad():
                synthetic.write(folder, users=7, rows=14)
                data = self.load(folder, settings)
                model = build(grab_config.from_text(synthetic.CONFIG + "".join(
                    f"{k}: {v}\n" for k, v in settings.items())))
                logits = packed(model, data)
                expected = np.array([served(model, data, t) for t in range(len(logits))])
                self.assertGreater(len(logits), 80)
                self.assertGreater(expected.std(), 0.01)
                # Both in float64 over at most a few hundred terms: 1e-12 is thousands of roundings.
                self.assertLess(np.abs(logits - expected).max() / max(1, np.abs(expected).max()), 1e-12)

    def test_a_window_of_targets_changes_nothing_when_its_context_suffices(self):
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            synthetic.write(folder, users=5, rows=20)
            data = self.load(folder)
            model = build(grab_config.from_text(synthetic.CONFIG))
            whole = packed(model, data)
            data.split[:] = shards.TRAIN
            seen = np.zeros(len(whole))
            for segment in data.segments(shards.TRAIN, target_rows_max=7):
                batch = shards.Batch(data, [segment])
                z = model.logits(data, batch)[0]
                self.assertLessEqual(segment[2] - segment[1], 7)
                np.testing.assert_allclose(z.numpy(), whole[segment[1]:segment[2]], atol=1e-12)
                seen[segment[1]:segment[2]] += 1
            self.assertTrue((seen == 1).all())

    def test_context_rows_limit_the_history(self):
        with tempfile.TemporaryDirectory() as folder:
            synthetic.write(folder, users=5, rows=20)
            data = self.load(folder)
            data.split[:] = shards.TRAIN
            for _, start, stop, ranges in data.segments(shards.TRAIN, target_rows_max=4, context_rows=6):
                older = data.rows[0]["time_us"][slice(*ranges[0])] < data.targets["time_us"][start]
                self.assertLessEqual(int(older.sum()), 6)

    def test_no_leak(self):
        """Changing an event changes no score at or before its time, none of its tie group, none of another user."""
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            written = synthetic.write(folder, users=6, rows=16)
            data = self.load(folder)
            model = build(grab_config.from_text(synthetic.CONFIG))
            before = packed(model, data)
            shard = written[0]
            user = int(np.argmax(np.diff(shard["f.offsets"])))
            begin, end = shard["f.offsets"][user:user + 2]
            changed = (begin + end) // 2
            shard["p0.class.ids"][changed] ^= 3  # 1 <-> 2: the label of the event
            shard["p0.action"][changed] ^= 1
            tensor_file.write_tensors(os.path.join(folder, "tokens-0.safetensors"), shard,
                                      {"config": synthetic.CONFIG, "feature_version": "1"})
            after = packed(model, self.load(folder))
            time_us = shard["f.time_us"]
            may_see = np.zeros(len(before), bool)
            may_see[begin:end] = time_us[begin:end] > time_us[changed]
            self.assertFalse(may_see[changed])
            np.testing.assert_array_equal(before[~may_see], after[~may_see])
            self.assertTrue((before[may_see] != after[may_see]).any(), "the change reached no later score")

    def test_bias_gradient(self):
        generator = torch.Generator().manual_seed(1)
        pos = torch.sort(torch.randint(0, 4, (2, 5, 9), generator=generator), -1, descending=True)[0]
        time = torch.sort(torch.randint(0, 6, (2, 5, 9), generator=generator), -1, descending=True)[0]
        seen = torch.rand(2, 5, 9, generator=generator) > 0.3
        seen[..., 0] = True
        relation = twin.Relation(pos, time, seen, 4, 6)
        inputs = [torch.randn(2, 3, 5, k, dtype=torch.float64, generator=generator, requires_grad=True)
                  for k in (9, 4, 6)]
        self.assertTrue(torch.autograd.gradcheck(lambda *x: torch.softmax(relation.add_bias(*x), -1), inputs))


if __name__ == "__main__":
    unittest.main()
