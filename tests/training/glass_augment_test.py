"""Drawn histories of GLASS training: what they may hold, that they follow the rules of real ones, folded tiers."""
import dataclasses
import os
import tempfile
import unittest

import numpy as np
import torch

from models.training import tensor_file
from models.training.glass import augment, data, history, trainer, twin
from tests.training import glass_synthetic as synthetic

PLAIN = {**trainer.DEFAULTS, "targets": 3, "horizon": 3}
FIELDS = ({}, {"neighbours": 2, "neighbour_below": 4}, {"long_items": 9}, {"profile": "PAPER"})


class AugmentTest(unittest.TestCase):

    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.addCleanup(self.temporary.cleanup)
        self.sid = synthetic.write(self.temporary.name, users=14)

    def log(self, **fields):
        return data.Log(self.temporary.name, tensor_file.read_tensors(self.sid)[0]["sid"], synthetic.config(**fields))

    def test_nothing_dropped_is_the_real_history(self):
        for fields in FIELDS:
            log = self.log(**fields)
            sample = torch.from_numpy(log.samples(data.TRAIN))
            begin = torch.arange(len(sample))
            drawn, table = augment.batch(log, sample, begin, PLAIN)
            real = log.batch(sample, 3, begin, 3)
            for name in ("short", "tokens", "valid", "codes"):
                self.assertTrue(torch.equal(getattr(drawn, name), getattr(real, name)), name)
            torch.testing.assert_close(drawn.features, real.features)
            self.assertTrue(torch.equal(table.bias, log.retrieve(sample, real.codes).bias))

    def test_drawn_parts_are_those_of_one_history(self):
        """Window, tiers and buckets of randomly thinned, two-sided slots equal history.recount of the kept items."""
        for fields in FIELDS:
            log = self.log(**fields)
            sample = torch.from_numpy(log.samples(data.TRAIN)[::5].copy())
            rows, kept = augment.slots(log, sample, log.targets_end(sample, 3), torch.ones(len(sample)) > 0)
            kept = kept & (torch.rand(kept.shape, generator=torch.Generator().manual_seed(3)) < 0.6)
            items, age = log.d_item[rows], augment.newest_first(kept)
            long = kept & (age >= log.config.short_items)
            if log.config.long_items:
                long = long & (age < log.config.short_items + log.config.long_items)
            codes = torch.arange(6).expand(len(sample), 6)
            short, features = augment.window(log, items, kept, age), augment.tiers(log, items, long)
            bucket = augment.retrieved(log, items, long, codes)
            for s in range(len(sample)):
                user = history.recount(log.catalogue, items[s][kept[s]].tolist())
                np.testing.assert_array_equal(short[s].numpy(), user.short_tokens())
                np.testing.assert_allclose(features[s].numpy(), user.tier_features(), atol=1e-6)
                for code in range(6):
                    mine = bucket[s, code]
                    self.assertEqual(sorted(mine[mine >= 0].tolist()), sorted(user.bucket(code)))

    def test_no_target_and_nothing_after_training_is_drawn(self):
        log = self.log()
        sample = torch.from_numpy(log.samples(data.TRAIN))
        end = log.targets_end(sample, 3)
        rows, good = augment.slots(log, sample, end, torch.ones(len(sample)) > 0)
        for s, row, ok in zip(range(len(sample)), rows.numpy(), good.numpy()):
            first, user = log.moment_first[sample[s]], log.moment_user[sample[s]]
            drawn = row[ok]
            own = np.flatnonzero((log.event_user == user) & (log.split == data.TRAIN))
            expected = np.setdiff1d(own, np.arange(first, int(end[s])))
            self.assertEqual(sorted(drawn.tolist()), expected.tolist())
            distance = np.where(drawn < first, first - drawn, drawn - int(end[s]) + 1)
            self.assertTrue((np.diff(distance) <= 0).all())
        one_sided, good = augment.slots(log, sample, end, torch.zeros(len(sample)) > 0)
        self.assertTrue((one_sided < log.first[sample].unsqueeze(1))[good].all())

    def test_share_of_kept_events(self):
        log = self.log()
        sample = torch.from_numpy(log.samples(data.TRAIN))
        torch.manual_seed(0)
        options = {**PLAIN, "keep_min": 0.5}
        full = (augment.batch(log, sample, sample, PLAIN)[0].short != 0).float().mean()
        thin = (augment.batch(log, sample, sample, options)[0].short != 0).float().mean()
        self.assertLess(float(thin), float(full))
        self.assertFalse(augment.wanted(PLAIN))
        self.assertTrue(augment.wanted(options) and augment.wanted({**PLAIN, "two_sided": 0.5}))

    def test_folded_tiers_are_the_same_function(self):
        log = self.log()
        model = twin.Glass(log.config, seed=3).double().eval()
        features = log.features.double()
        plain = model.tier_token(features)
        model.standardise_tiers(features)
        before = model.tier_token(features)
        self.assertGreater(float((before - plain).abs().max()), 1e-3)
        model.fold_tiers()
        torch.testing.assert_close(model.tier_token(features), before)
        again = twin.Glass(dataclasses.replace(log.config)).double()
        again.load_weights({name: p.detach() for name, p in model.named_weights().items()})
        torch.testing.assert_close(again.tier_token(features), before)


if __name__ == "__main__":
    unittest.main()
