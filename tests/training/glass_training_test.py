"""GLASS training: what a sample sees, semantic IDs, metrics, resuming, baselines."""
import os
import tempfile
import unittest

import numpy as np
import torch

from models.training import tensor_file
from models.training.glass import baselines, data, embed, evaluate, history, prepare, sid, train, trainer, twin
from tests.training import glass_synthetic as synthetic

OPTIONS = {"epochs": 4, "batch": 32, "targets": 2, "patience": 9, "warmup": 5, "validation_max": 50, "beam": 6}


def open_log(folder, **fields):
    path = os.path.join(folder, "sid.safetensors")
    return data.Log(folder, tensor_file.read_tensors(path)[0]["sid"], synthetic.config(**fields))


class Folder(unittest.TestCase):

    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = self.temporary.name
        self.addCleanup(self.temporary.cleanup)

    def job(self, **more):
        model = {**synthetic.SMALL, "beam": 6}
        del model["levels"], model["embedding_width"]
        return {"data": self.folder, "sid": os.path.join(self.folder, "sid.safetensors"), "model": model,
                "options": OPTIONS, "dropout": 0.0, **more}


class SplitTest(Folder):

    def test_split_is_in_time_between_moments(self):
        r = np.random.default_rng(0)
        for n in (0, 1, 4, 5, 6, 30, 500):
            time_us = np.cumsum(r.integers(0, 3, n))
            split = prepare.split_user(time_us)
            self.assertTrue((np.diff(split) >= 0).all())
            for moment in np.unique(time_us):
                self.assertEqual(len(np.unique(split[time_us == moment])), 1)
            if n >= 30:
                self.assertTrue(0.1 <= (split == prepare.TEST).mean() < 0.25)
                self.assertTrue(0.1 <= (split == prepare.VALIDATION).mean() < 0.25)
            if n < 5:
                self.assertFalse(split.any())
        self.assertFalse(prepare.split_user(np.full(20, 7)).any())

    def rewrite(self, change):
        """Writes the folder's log again with events changed by change(log)."""
        path = os.path.join(self.folder, "log.safetensors")
        log, about = tensor_file.read_tensors(path)
        log = {name: value.copy() for name, value in log.items()}
        change(log)
        tensor_file.write_tensors(path, log, about)

    def test_inputs_do_not_depend_on_the_moment_or_later(self):
        """Scrambles everything from a sample's moment on: window, tiers and retrieved sets stay bit for bit."""
        synthetic.write(self.folder)
        log = open_log(self.folder, neighbours=2, neighbour_below=4)
        number = len(log.first) // 2
        first, user = log.moment_first[number], log.moment_user[number]
        same_user = np.flatnonzero(log.moment_user == user)
        codes = torch.arange(6).unsqueeze(0)

        def inputs(log):
            sample = torch.tensor([number])
            return log.short_tokens(sample), log.features[sample], log.retrieve(sample, codes).bias

        before = inputs(log)
        r = np.random.default_rng(1)
        self.rewrite(lambda log: r.shuffle(log["event.item"][first:]))
        after = inputs(open_log(self.folder, neighbours=2, neighbour_below=4))
        for a, b in zip(before, after):
            self.assertTrue(torch.equal(a, b))
        self.assertGreater(len(same_user), 3)
        # and the probe can fail: a change before the moment is seen
        self.rewrite(lambda log: log["event.item"].__setitem__(first - 1, (log["event.item"][first - 1] + 1) % 90))
        changed = inputs(open_log(self.folder, neighbours=2, neighbour_below=4))
        self.assertFalse(torch.equal(before[0], changed[0]))

    def test_statistics_come_from_training_alone(self):
        synthetic.write(self.folder)

        def statistics():
            log = open_log(self.folder)
            raw, _ = tensor_file.read_tensors(os.path.join(self.folder, "log.safetensors"))
            return log.train_counts(), embed.collaborative(raw, 4), baselines.item_similarity(log).numpy()

        before = statistics()
        self.rewrite(lambda log: log["event.item"].__setitem__(log["event.split"] != 0, 0))
        for a, b in zip(before, statistics()):
            np.testing.assert_array_equal(a, b)

    def test_horizon_stays_inside_training(self):
        synthetic.write(self.folder)
        log = open_log(self.folder)
        sample = torch.from_numpy(log.samples(data.TRAIN))
        items, valid = log.targets(sample, 6, torch.zeros_like(sample), horizon=6)
        for s, row, good in zip(sample.tolist(), items.tolist(), valid.tolist()):
            first = log.moment_first[s]
            train = (log.split[first:] == data.TRAIN) & (log.event_user[first:] == log.moment_user[s])
            allowed = log.item[first:][train]
            kept = [item for item, ok in zip(row, good) if ok]
            self.assertEqual(kept, list(allowed[:len(kept)]))
            self.assertEqual(len(kept), min(6, len(allowed)))


class BatchTest(Folder):

    def test_tensor_form_equals_histories(self):
        """Window, tier features and retrieved sets of every sample equal history.recount of its events."""
        synthetic.write(self.folder, users=12)
        for fields in ({}, {"neighbours": 2, "neighbour_below": 4}, {"long_items": 9}, {"profile": "PAPER"}):
            log = open_log(self.folder, **fields)
            sample = torch.arange(len(log.first))
            codes = torch.arange(6).expand(len(sample), 6)
            short, counts = log.short_tokens(sample).numpy(), np.exp(log.retrieve(sample, codes).bias.numpy())
            for s in range(len(sample)):
                user = history.recount(log.catalogue, list(log.item[log.moment_start[s]:log.moment_first[s]]))
                np.testing.assert_array_equal(short[s], user.short_tokens())
                np.testing.assert_allclose(log.features[s].numpy(), user.tier_features(), atol=1e-6)
                expected = history.token_counts(np.stack([user.retrieved_tokens(code) for code in range(6)]),
                                                log.config.vocabulary)
                expected[expected.sum(1) == 0, 0] = 1
                np.testing.assert_allclose(counts[s], expected, atol=1e-4)

    def test_targets_are_the_moment(self):
        synthetic.write(self.folder, users=12)
        log = open_log(self.folder)
        sample = torch.arange(len(log.first))
        begin = torch.randint(0, 1 << 30, (len(sample),), generator=torch.Generator().manual_seed(0))
        items, valid = log.targets(sample, 3, begin)
        for s in range(len(sample)):
            moment = log.item[log.moment_first[s]:log.moment_end[s]]
            self.assertEqual(int(valid[s].sum()), min(3, len(moment)))
            self.assertTrue(set(items[s][valid[s]].tolist()) <= set(moment.tolist()))


class SidTest(unittest.TestCase):

    def test_both_kinds(self):
        embedding, _ = synthetic.catalogue(300)
        for kind, more in (("RQ_KMEANS", {}), ("RQ_VAE", {"epochs": 150, "hidden": (32,), "latent": 8, "batch": 64})):
            with self.subTest(kind=kind):
                tensors, report = sid.train(embedding, levels=(8, 16, 16), kind=kind, **more)
                np.testing.assert_array_equal(sid.assign(tensors, embedding), tensors["sid"])
                self.assertEqual(report["items"], 300)
                self.assertEqual(report["distinct"], len({tuple(row) for row in tensors["sid"]}))
                self.assertGreaterEqual(report["level_0"]["used"], 6)
                self.assertLess(report["collision_rate"], 0.5)
                # alike items share their first code more often than others
                near = embedding @ embedding.T > 0.8
                same = tensors["sid"][:, None, 0] == tensors["sid"][None, :, 0]
                self.assertGreater(same[near].mean(), 3 * same[~near].mean())
                again, _ = sid.train(embedding, levels=(8, 16, 16), kind=kind, **more)
                np.testing.assert_array_equal(again["sid"], tensors["sid"])

    def test_a_new_item_gets_codes_from_frozen_codebooks(self):
        embedding, _ = synthetic.catalogue(300)
        tensors, _ = sid.train(embedding[:250], levels=(8, 16, 16), kind="RQ_KMEANS")
        codes = sid.assign(tensors, embedding[250:])
        rest = embedding[250:].copy()
        for level in range(3):
            book = tensors[f"codebook.{level}"]
            nearest = ((rest[:, None] - book[None]) ** 2).sum(-1).argmin(1)
            np.testing.assert_array_equal(codes[:, level], nearest)
            rest -= book[nearest]
        for bad, what in ((embedding[:, :5], "expected"), (embedding[0], "expected"), (embedding * np.nan, "NaN")):
            with self.assertRaisesRegex(ValueError, what):
                sid.assign(tensors, bad)
        with self.assertRaisesRegex(ValueError, "NaN"):
            sid.train(np.full((9, 4), np.inf))

    def test_fewer_items_than_codes(self):
        tensors, report = sid.train(np.eye(5, 4), levels=(8, 8, 8), kind="RQ_KMEANS")
        self.assertEqual(report["distinct"], 5)
        self.assertTrue(np.isfinite(tensors["codebook.2"]).all())

    def test_sinkhorn_balances(self):
        d = torch.rand(64, 8, generator=torch.Generator().manual_seed(0)) + torch.arange(8)
        share = sid.sinkhorn(d, 0.05, 200)
        np.testing.assert_allclose(share.sum(1).numpy(), 1, atol=1e-6)
        np.testing.assert_allclose(share.sum(0).numpy(), 8, atol=0.5)


class MetricTest(Folder):

    def test_values(self):
        rank = np.array([0, 1, 4, 9, 19, 255], np.uint8)
        found = evaluate.metrics(rank)
        self.assertAlmostEqual(found["hit@5"], 3 / 6)
        self.assertAlmostEqual(found["ndcg@20"], sum(1 / np.log2(r + 2) for r in (0, 1, 4, 9, 19)) / 6)
        self.assertAlmostEqual(found["ndcg@1"], 1 / 6)

    def test_lists_skip_seen_and_keep_order(self):
        items = torch.tensor([[5, -1, 7, 9, 8], [1, 2, 3, 4, 5]])
        hidden = torch.tensor([[0, 0, 1, 0, 0], [1, 1, 1, 1, 0]], dtype=torch.bool)
        self.assertEqual(evaluate.first_items(items, hidden, 3).tolist(), [[5, 9, 8], [5, -1, -1]])
        ranks = evaluate.ranks(torch.tensor([8, 9]), torch.tensor([[5, 9, 8], [5, -1, -1]]))
        self.assertEqual(ranks.tolist(), [2, 255])

    def test_postings_put_the_popular_first(self):
        synthetic.write(self.folder)
        log = open_log(self.folder)
        counts, sids = log.train_counts(), torch.from_numpy(log.catalogue.sid)
        items = evaluate.Postings(log, "cpu").expand(sids[None], torch.zeros(1, len(sids)), 50).reshape(len(sids), 50)
        for row, code in zip(items.tolist(), log.catalogue.sid):
            listed = [item for item in row if item >= 0]
            self.assertEqual(set(listed), set(np.flatnonzero((log.catalogue.sid == code).all(1))))
            self.assertEqual([counts[i] for i in listed], sorted((counts[i] for i in listed), reverse=True))

    def test_recommendations_are_unseen(self):
        synthetic.write(self.folder, unseen_only=True)
        task, log = train.build(self.job(), "cpu")
        sample = log.samples(data.TEST)
        postings, trie = evaluate.Postings(log, "cpu"), evaluate.decode.Trie(log.catalogue.sid, log.config.levels)
        items, _ = evaluate.recommend(task.model.eval(), log, sample, 30, postings, trie)
        for row, s in zip(items.tolist(), sample):
            seen = set(log.item[log.moment_start[s]:log.moment_first[s]])
            self.assertFalse(seen & set(row))
            self.assertTrue(any(item >= 0 for item in row))


class TrainerTest(Folder):

    def test_learns_and_resumes(self):
        """Four epochs in one go equal two, a stop, and two more, to the last bit; and the model beats popularity."""
        synthetic.write(self.folder, users=40)
        job = self.job(options={**OPTIONS, "epochs": 12, "lr": 1e-2, "item_dropout": 0.1})
        whole, log = train.build(job, "cpu")
        options = {**trainer.DEFAULTS, **job["options"]}
        state = trainer.fit(whole, log, options)
        parts, _ = train.build(job, "cpu")
        path = os.path.join(self.folder, "checkpoint.pt")

        class Stop(Exception):
            pass

        class Stopper:
            step = staticmethod(lambda *_: None)

            @staticmethod
            def epoch(row):
                if row["epoch"] == 3:
                    raise Stop

        with self.assertRaises(Stop):
            trainer.fit(parts, log, options, path, Stopper)
        torch.rand(3)  # the process that resumes stands elsewhere
        again, _ = train.build({**job, "seed": 5}, "cpu")
        resumed = trainer.fit(again, log, options, path)
        self.assertEqual([row["train_loss"] for row in state["history"]],
                         [row["train_loss"] for row in resumed["history"]])
        for a, b in zip(whole.parameters(), again.parameters()):
            self.assertTrue(torch.equal(a, b))
        sample = log.samples(data.TEST)
        found = evaluate.metrics(evaluate.evaluate(whole.model, log, sample, 20)["item"])
        plain = evaluate.metrics(baselines.popularity(log, sample)["item"])
        self.assertGreater(found["ndcg@20"], 1.5 * plain["ndcg@20"])

    def test_run_writes_what_the_exporter_reads(self):
        synthetic.write(self.folder, users=20)
        out = os.path.join(self.folder, "run")
        summary = train.run(self.job(test=True, without=["search"]), out, "cpu")
        tensors, metadata = tensor_file.read_tensors(os.path.join(out, "weights.safetensors"))
        config = train.glass_config.from_text(metadata["config"])
        self.assertEqual((config.retrieved_items, config.levels), (0, synthetic.LEVELS))
        twin.Glass(config).load_weights(tensors)
        ranks, _ = tensor_file.read_tensors(os.path.join(out, "test.safetensors"))
        self.assertEqual(evaluate.metrics(ranks["rank.item"]), summary["test"]["item"])

    def test_early_stop(self):
        synthetic.write(self.folder, users=12)
        task, log = train.build(self.job(), "cpu")
        state = trainer.fit(task, log, {**OPTIONS, "lr": 0.0, "epochs": 30, "patience": 2})
        self.assertEqual(state["epoch"], 3)


class BaselineTest(Folder):

    def test_rankings(self):
        synthetic.write(self.folder, users=60)
        log = open_log(self.folder)
        sample = log.samples(data.TEST)
        weights = baselines.history_weights(log, sample[:4], 0.5, last=3)
        s = sample[0]
        newest = log.item[log.moment_first[s] - 3:log.moment_first[s]][::-1]
        expected = np.zeros(log.items)
        np.add.at(expected, newest, [1, 0.5, 0.25][:len(newest)])
        np.testing.assert_allclose(weights[0].numpy(), expected)
        values = {name: evaluate.metrics(ranks["item"])["ndcg@20"] for name, ranks in (
            ("popularity", baselines.popularity(log, sample)), ("own", baselines.own_counts(log, sample)),
            ("knn", baselines.item_knn(log, sample, baselines.item_similarity(log), own=1.0)))}
        self.assertGreater(values["own"], values["popularity"])
        self.assertGreater(values["knn"], values["popularity"])

    def test_sasrec_learns_and_never_sees_its_own_moment(self):
        synthetic.write(self.folder, users=60)
        job = self.job(kind="sasrec", sasrec={"d": 16, "length": 12, "dropout": 0.0},
                       options={**OPTIONS, "epochs": 12, "lr": 1e-2})
        task, log = train.build(job, "cpu")
        with torch.no_grad():
            sample = torch.from_numpy(log.samples(data.TRAIN)[:40])
            before = task.states(log, sample)
            log.d_item[log.first[sample[7]]:] = 0
            after = task.states(log, sample)
        self.assertTrue(torch.equal(before[:8], after[:8]))
        task, log = train.build(job, "cpu")
        trainer.fit(task, log, job["options"])
        sample = log.samples(data.TEST)
        self.assertGreater(evaluate.metrics(task.rank(log, sample, job["options"])["item"])["ndcg@20"],
                           1.5 * evaluate.metrics(baselines.popularity(log, sample)["item"])["ndcg@20"])


if __name__ == "__main__":
    unittest.main()
