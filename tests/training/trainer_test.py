"""The training loop: it learns, it resumes exactly, it splits and freezes as it says."""
import os
import tempfile
import unittest

import numpy as np
import torch

from models.training import config as grab_config
from models.training import metrics, optimizers, rankers, shards, trainer
from tests.training import synthetic

_QUICK = {"epochs": 4, "patience": 9, "lr": 1e-2, "table_lr": 2e-2, "average": 0.5, "users_max": 8, "pairs_max": 60_000}


def _fit(folder, kind="grab", settings=None, **options):
    base = grab_config.from_text(synthetic.CONFIG)
    config, arguments, chosen = rankers.split_settings(base, {**_QUICK, **(settings or {})})
    data = shards.Dataset(folder, config)
    model = rankers.build(kind, config, arguments, 0)
    return model, data, trainer.fit(model, data, chosen, **options)


class TrainerTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.scratch = tempfile.TemporaryDirectory()
        cls.folder = os.path.join(cls.scratch.name, "shards")
        os.mkdir(cls.folder)
        synthetic.write(cls.folder, users=40, rows=40)

    @classmethod
    def tearDownClass(cls):
        cls.scratch.cleanup()

    def test_every_kind_learns(self):
        for kind in ("grab", "hstu", "din"):
            with self.subTest(kind=kind):
                _, _, state = _fit(self.folder, kind)
                history = [row["auc"] for row in state["history"]]
                self.assertGreater(state["best"]["auc"], 0.6)  # nothing learned is 0.5; the noise allows about 0.9
                self.assertLess(state["history"][-1]["train_loss"], state["history"][0]["train_loss"])
                self.assertEqual(state["best"]["auc"], max(history))

    def test_resume_continues_as_if_never_stopped(self):
        for sts in (0, 1):
            with self.subTest(sts_every=sts), tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "checkpoint.pt")
                settings = {"sts_every": sts, "dropout": 0.1, "epochs": 2}
                straight, _, whole = _fit(self.folder, settings=settings)
                _fit(self.folder, settings={**settings, "epochs": 1}, checkpoint=path)
                resumed, _, rest = _fit(self.folder, settings=settings, checkpoint=path)
                self.assertEqual([row["auc"] for row in whole["history"]], [row["auc"] for row in rest["history"]])
                for (name, a), (_, b) in zip(straight.named_parameters(), resumed.named_parameters()):
                    self.assertTrue(torch.equal(a, b), name)

    def test_sequence_then_sparse_separates_the_stages(self):
        base = grab_config.from_text(synthetic.CONFIG)
        config, _, options = rankers.split_settings(base, {**_QUICK, "epochs": 1, "sts_every": 2, "average": 0.0})
        data = shards.Dataset(self.folder, config)
        model = rankers.build("grab", config, {}, 0)
        start = {name: p.detach().clone() for name, p in model.named_weights().items()}
        trainer.fit(model, data, options)
        for name, p in model.named_weights().items():  # no sparse stage yet: tables frozen, the rest moved
            if name.startswith("tok.table."):
                self.assertTrue(torch.equal(p, start[name]), name)
        self.assertFalse(torch.equal(model.w("w.head.w1"), start["w.head.w1"]))
        model = rankers.build("grab", config, {}, 0)
        trainer.fit(model, data, {**options, "sts_every": 1})
        self.assertFalse(torch.equal(model.w("tok.table.item"), start["tok.table.item"]))

    def test_split_keeps_ties_together(self):
        tie = np.array([1, 2, 3, 4, 5, 6, 7, 7, 8, 9, 10, 10, 10])
        split = shards.split_by_time(np.array([0, 10, 13]), tie)
        # Cuts at 7 and 8 of the first ten: 7 would part the tie 7, 7, so it moves to 6. The last user is one tie.
        self.assertEqual(split.tolist(), [0] * 6 + [1] * 2 + [2] * 2 + [2] * 3)

    def test_batches_cover_each_target_once(self):
        config = grab_config.from_text(synthetic.CONFIG)
        data = shards.Dataset(self.folder, config)
        for rows in (0, 5):
            seen = np.zeros(len(data.split))
            for group in shards.plan_batches(data.segments(shards.TRAIN, rows), 20_000, 6, np.random.default_rng(0)):
                batch = shards.Batch(data, group)
                np.add.at(seen, batch.f["rows"][batch.f["valid"]].numpy(), 1)
            self.assertTrue((seen == (data.split == shards.TRAIN)).all())

    def test_row_wise_adam_leaves_untouched_rows(self):
        table = torch.nn.Parameter(torch.ones(4, 3))
        tool = optimizers.RowWiseAdam([table], lr=0.1, weight_decay=0.5)
        table.grad = torch.zeros(4, 3)
        table.grad[2] = torch.tensor([1.0, -1.0, 2.0])
        tool.step()
        self.assertTrue(torch.equal(table.detach()[[0, 1, 3]], torch.ones(3, 3)))
        # First step: mean = gradient, root mean square = sqrt(2); decay 0.1 * 0.5.
        expected = 1 - 0.1 * (np.array([1, -1, 2]) / np.sqrt(2) + 0.5)
        np.testing.assert_allclose(table.detach()[2].numpy(), expected, rtol=1e-5)


class MetricsTest(unittest.TestCase):

    def test_auc_against_the_definition(self):
        r = np.random.default_rng(5)
        label, score = (r.random(60) < 0.4).astype(float), np.round(r.random(60), 1)
        weight = r.integers(0, 4, 60).astype(float)
        total = wins = 0.0
        for i in range(60):
            for j in range(60):
                if label[i] == 1 and label[j] == 0:
                    total += weight[i] * weight[j]
                    wins += weight[i] * weight[j] * (score[i] > score[j]) + 0.5 * weight[i] * weight[j] * (
                        score[i] == score[j])
        self.assertAlmostEqual(metrics.auc(label, score, weight), wins / total, places=12)
        self.assertTrue(np.isnan(metrics.auc(np.ones(3), np.arange(3.0))))

    def test_gauc_weighs_users_by_impressions(self):
        user = np.array([0, 0, 1, 1, 1, 1, 2])  # user 2 has one class and does not count
        label = np.array([1, 0, 1, 0, 0, 0, 1.0])
        logit = np.array([1, 0, 0, 1, 1, 1, 5.0])
        self.assertAlmostEqual(metrics.evaluate(user, label, logit)["gauc"], (2 * 1.0 + 4 * 0.0) / 6)

    def test_platt_recovers_a_known_distortion(self):
        r = np.random.default_rng(2)
        true = r.normal(size=20000)
        label = (r.random(20000) < 1 / (1 + np.exp(-true))).astype(float)
        a, b = metrics.platt(label, (true - 0.5) / 2)
        self.assertAlmostEqual(a, 2, delta=0.1)  # standard error about 0.04
        self.assertAlmostEqual(b, 0.5, delta=0.05)
        self.assertAlmostEqual(metrics.evaluate(np.zeros(20000), label, a * (true - 0.5) / 2 + b)["pcoc"], 1, places=4)

    def test_bootstrap_sees_a_difference_and_none(self):
        r = np.random.default_rng(3)
        user = np.repeat(np.arange(40), 25)
        label = (r.random(1000) < 0.5).astype(float)
        good, bad = label + r.normal(size=1000), label + 3 * r.normal(size=1000)
        versus = metrics.paired_bootstrap(user, label, [good], [bad], 200)
        self.assertGreater(versus["auc"]["low"], 0)
        self.assertGreater(versus["gauc"]["low"], 0)
        same = metrics.paired_bootstrap(user, label, [good], [good], 50)
        self.assertEqual((same["auc"]["low"], same["auc"]["high"]), (0, 0))


if __name__ == "__main__":
    unittest.main()
