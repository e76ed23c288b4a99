"""GLASS beyond the conformance cases: identities, incremental histories, beam search in all modes, configurations."""
import itertools
import unittest

import numpy as np
import torch

from models.training.glass import config as glass_config
from models.training.glass import decode, history, twin
from tests.training import glass_synthetic as synthetic


def random_model(config, seed=0):
    """A model with spread-out logits, so that beams differ."""
    model = twin.Glass(config, seed=seed, std=0.5).double().eval()
    with torch.no_grad():
        for name, value in model.named_weights().items():
            if value.dim() == 1 and not name.endswith("norm"):
                value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))) * 0.3)
    return model


def user_of(catalogue, length, seed):
    items = np.random.default_rng(seed).integers(0, len(catalogue.sid), length)
    return history.recount(catalogue, list(items))


def inputs(users):
    short = torch.from_numpy(np.stack([user.short_tokens() for user in users]))
    features = torch.from_numpy(np.stack([user.tier_features() for user in users])).double()
    return short, features


PROFILES = {
    "compat": glass_config.make("COMPAT", **{**synthetic.SMALL, "vocabulary": 40}),
    "paper": glass_config.make("PAPER", **synthetic.SMALL),
    "paper_neighbours": glass_config.make("PAPER", **{**synthetic.SMALL, "neighbours": 2, "neighbour_below": 4}),
    "dense": synthetic.config(),
    "without_tier": synthetic.config(tier_edges=()),
    "without_search": synthetic.config(retrieved_items=0),
    "plain": synthetic.config(tier_edges=(), retrieved_items=0),
}


def retrieve_of(users, spelled=False):
    parts = [decode.retrieve_from(user, torch.float64, spelled) for user in users]

    def retrieve(codes):
        if not users[0].config.retrieved_items:
            return None
        tables = [part(codes[i:i + 1]) for i, part in enumerate(parts)]
        if spelled:
            return twin.TokenList(torch.cat([t.tokens for t in tables]), torch.cat([t.bias for t in tables]))
        joined = twin.CountTable(torch.ones(1, 1, users[0].config.vocabulary, dtype=torch.float64))
        joined.bias = torch.cat([table.bias for table in tables])
        return joined

    return retrieve


class IdentityTest(unittest.TestCase):

    def setUp(self):
        embedding, tensors = synthetic.catalogue()
        self.config = PROFILES["compat"]
        self.catalogue = history.Catalogue(self.config, tensors["sid"], embedding)
        self.r = torch.Generator().manual_seed(1)

    def attend(self, retrieved):
        shape = (1, 1, 2, 3, 8)
        q = torch.randn(shape, generator=self.r, dtype=torch.float64)
        k, v = torch.randn((2, self.config.vocabulary, 2, 8), generator=self.r, dtype=torch.float64)
        return lambda kind: kind.attend(q, k, v), k, v, retrieved

    def test_distinct_tokens_with_log_counts(self):
        """Repeats, any order, padding: attention over distinct tokens with bias log(count) is the same function."""
        for tokens in ([3, 3, 3, 9, 17, 17, 30, 0, 0], [5], [0, 7, 0, 7], [1] * 18, [0, 0, 0]):
            row = torch.tensor(tokens).reshape(1, 1, -1)
            run, _, v, _ = self.attend(row)
            expected = run(twin.TokenList.spelled(row, torch.float64))
            counts = torch.from_numpy(history.token_counts(row.numpy(), self.config.vocabulary))
            for form in (twin.CountTable(counts), twin.TokenList.distinct(row, torch.float64),
                         twin.TokenList.spelled(row.flip(-1), torch.float64)):
                self.assertLess(float((run(form) - expected).abs().max()), 1e-12, tokens)
            if not any(tokens):
                self.assertLess(float((expected - v[0][:, None]).abs().max()), 1e-12)

    def test_a_dropped_repeat_is_seen(self):
        run, _, _, _ = self.attend(None)
        once, twice = (twin.TokenList.spelled(torch.tensor(t).reshape(1, 1, -1), torch.float64)
                       for t in ([3, 9], [3, 3, 9]))
        self.assertGreater(float((run(once) - run(twice)).abs().max()), 1e-3)

    def test_empty_bucket_is_a_constant(self):
        """The retrieved branch of an empty bucket is o v (retrieved(E[0])) in every state, and the gate blends it."""
        model = random_model(self.config)
        with torch.no_grad():
            empty = twin.CountTable(torch.zeros(1, 1, self.config.vocabulary, dtype=torch.float64))
            row = model.w("retrieved.w") @ model.w("token_embedding")[0] + model.w("retrieved.b")
            constant = model.w("dec.0.retrieved.o") @ (model.w("dec.0.retrieved.v") @ row)
            table = model.retrieved_tables()[0]
            z = torch.randn(1, 1, 2, self.config.d, dtype=torch.float64)
            q, = model._heads("dec.0.retrieved", z, "q")
            out = model._out("dec.0.retrieved.o", empty.attend(q, *table))
            self.assertLess(float((out - constant).abs().max()), 1e-12)
            user = user_of(self.catalogue, 5, 0)  # no long part at all
            gates = []
            short, features = inputs([user])
            model.logits(short, features, torch.tensor([[[1, 9, 17]]]), retrieve_of([user])(torch.tensor([[0]])), gates)
            self.assertEqual(len(gates), self.config.decoder_layers)
            self.assertGreater(float(torch.stack(gates).min()), 0)

    def test_first_token_never_sees_the_retrieved_set(self):
        model, user = random_model(self.config), user_of(self.catalogue, 60, 3)
        short, features = inputs([user])
        targets = torch.tensor([[[1, 9, 17]]])
        with torch.no_grad():
            a, b = (model.logits(short, features, targets, retrieve_of([user])(torch.tensor([[code]])))
                    for code in (0, 1))
        self.assertEqual(float((a[..., 0, :] - b[..., 0, :]).abs().max()), 0)
        self.assertGreater(float((a[..., 1, :] - b[..., 1, :]).abs().max()), 1e-6)

    def test_the_retrieved_path_stops_gradients_to_the_token_table(self):
        model = twin.Glass(self.config).double()
        tables = model.retrieved_tables()
        sum(x.sum() for table in tables for x in table).backward()
        self.assertIsNone(model.w("token_embedding").grad)
        self.assertIsNotNone(model.w("retrieved.w").grad)


class HistoryTest(unittest.TestCase):

    def check(self, config, length, seed):
        embedding, tensors = synthetic.catalogue()
        catalogue = history.Catalogue(config, tensors["sid"], embedding)
        items = list(np.random.default_rng(seed).integers(0, len(embedding), length))
        running = history.History(catalogue)
        for n in range(length + 1):
            if n % 7 == 0 or n == length:
                whole = history.recount(catalogue, items[:n])
                np.testing.assert_array_equal(running.counts, whole.counts)
                self.assertEqual(running.long_count, whole.long_count)
                np.testing.assert_array_equal(running.short_tokens(), whole.short_tokens())
                np.testing.assert_array_equal(running.tier_features(), whole.tier_features())
                for code in range(config.levels[0]):
                    self.assertEqual(list(running.bucket(code)), list(whole.bucket(code)))
            if n < length:
                running.append(items[n])

    def test_incremental_equals_recount(self):
        for name, config in PROFILES.items():
            for cap in (0, 1, 17):
                with self.subTest(profile=name, long_items=cap):
                    self.check(_replace(config, long_items=cap), 90, cap)

    def test_bucket_is_newest_of_its_code(self):
        embedding, tensors = synthetic.catalogue()
        config = _replace(PROFILES["dense"], neighbours=2, neighbour_below=3)
        catalogue = history.Catalogue(config, tensors["sid"], embedding)
        items = list(np.random.default_rng(5).integers(0, 90, 70))
        user, long = history.recount(catalogue, items), items[:65]
        filled = 0
        for code in range(6):
            own = [i for i in long if catalogue.sid[i, 0] == code][-6:]
            expected = own
            if len(own) < 3:
                for other in catalogue.neighbours[code]:
                    more = [i for i in long if catalogue.sid[i, 0] == other]
                    expected = more[len(more) - min(len(more), 6 - len(expected)):] + expected
                filled += len(expected) > len(own)
            self.assertEqual(user.bucket(code), expected)
        thin = history.recount(catalogue, [i for i in items if catalogue.sid[i, 0] != 2] + items[:5])
        self.assertTrue(thin.bucket(2))
        self.assertTrue(all(catalogue.sid[i, 0] in catalogue.neighbours[2] for i in thin.bucket(2)))

    def test_tier_bins(self):
        config = _replace(PROFILES["compat"], tier_edges=(-1.0, 0.0, 0.5, 1.0))
        prototype = np.eye(2, dtype=np.float32)
        rows = np.array([[1, -1], [0.5, 0], [0.4999, -0.0001], [1.5, -1.5]], np.float32)
        none = history.NO_BIN
        np.testing.assert_array_equal(history.tier_bins(rows, prototype, config),
                                      [[2, 0], [2, 1], [1, 0], [none, none]])

    def test_codes_out_of_range_are_refused(self):
        embedding, tensors = synthetic.catalogue()
        with self.assertRaisesRegex(ValueError, "sid"):
            history.Catalogue(_replace(PROFILES["dense"], levels=(3, 8, 8)), tensors["sid"], embedding)


def _replace(config, **fields):
    import dataclasses
    return dataclasses.replace(config, **fields)


class DecodeTest(unittest.TestCase):

    def setUp(self):
        self.embedding, self.tensors = synthetic.catalogue()

    def users(self, config):
        catalogue = history.Catalogue(config, self.tensors["sid"], self.embedding)
        return [user_of(catalogue, length, i) for i, length in enumerate((1, 4, 6, 30, 80, 200))]

    def test_cached_beams_equal_naive_beams(self):
        trie = decode.Trie(self.tensors["sid"], synthetic.LEVELS)
        for (name, config), mode in itertools.product(PROFILES.items(), ("free", "level", "valid")):
            with self.subTest(profile=name, mode=mode), torch.no_grad():
                model, users = random_model(config, 3), self.users(config)
                short, features = inputs(users)
                fast = decode.search(model, short, features, retrieve_of(users), 8, mode, trie)
                slow = decode.search_naive(model, short, features, retrieve_of(users, spelled=True), 8, mode, trie)
                for (a, x), (b, y) in zip(fast.steps, slow.steps):
                    np.testing.assert_array_equal(a.numpy(), b.numpy())
                    np.testing.assert_allclose(x.numpy(), y.numpy(), atol=1e-11)

    def test_constrained_beams_are_items(self):
        """Every beam with a score is the SID of an item, best first, no repeats; few items leave -inf behind."""
        config = PROFILES["dense"]
        model, users = random_model(config, 4), self.users(config)
        short, features = inputs(users)
        for count, beam in ((90, 8), (90, 40), (3, 8), (1, 5)):
            sids = self.tensors["sid"][:count]
            known = {tuple(row) for row in sids}
            with torch.no_grad():
                beams = decode.search(model, short, features, retrieve_of(users), beam, "valid",
                                      decode.Trie(sids, synthetic.LEVELS))
            for codes, score in zip(beams.codes(config).tolist(), beams.score.tolist()):
                good = [tuple(code) for code, value in zip(codes, score) if value > -np.inf]
                self.assertEqual(len(good), min(beam, len(known)) if count < 8 else len(good))
                self.assertTrue(good and set(good) <= known)
                self.assertEqual(len(set(good)), len(good))
                self.assertEqual(score, sorted(score, reverse=True))

    def test_wide_beam_is_exhaustive(self):
        """With a beam that never cuts, scores are the teacher-forced log-probabilities of all SIDs."""
        config = PROFILES["paper"]
        model, users = random_model(config, 5), self.users(config)[3:4]
        short, features = inputs(users)
        sids = np.unique(self.tensors["sid"], axis=0)
        with torch.no_grad():
            beams = decode.search(model, short, features, retrieve_of(users), len(sids), "valid",
                                  decode.Trie(sids, synthetic.LEVELS))
            targets = torch.from_numpy(sids + [config.offset(level) for level in range(3)]).unsqueeze(0)
            logits = model.logits(short, features, targets, retrieve_of(users)(torch.from_numpy(sids[:, :1].T.copy())))
            total = torch.log_softmax(logits, -1).gather(-1, targets.unsqueeze(-1)).sum((-1, -2))[0]
        order = np.argsort(-total.numpy())
        np.testing.assert_array_equal(beams.codes(config)[0].numpy(), sids[order])
        np.testing.assert_allclose(beams.score[0].numpy(), total.numpy()[order], atol=1e-11)

    def test_trie_equals_brute_force(self):
        sids = self.tensors["sid"]
        trie = decode.Trie(sids, synthetic.LEVELS)
        for s1 in range(6):
            for s2 in range(8):
                third = {row[2] for row in sids if row[0] == s1 and row[1] == s2}
                mask = trie.mask(2, torch.tensor([s1 * 8 + s2]))[0]
                self.assertEqual(set(torch.nonzero(mask).flatten().tolist()), third)

    def test_four_step_audit(self):
        """The fourth token of the reference's evaluation can only reorder and repeat triples, never invent prefixes."""
        config = PROFILES["compat"]
        model, users = random_model(config, 6), self.users(config)[3:]
        short, features = inputs(users)
        with torch.no_grad():
            three = decode.search_naive(model, short, features, retrieve_of(users), 8, "free")
            four = decode.search_naive(model, short, features, retrieve_of(users), 8, "free", steps=4)
        self.assertEqual(tuple(four.tokens.shape), (3, 8, 3))
        for a, b in zip(three.tokens.tolist(), four.tokens.tolist()):
            self.assertLessEqual({tuple(t) for t in b}, {tuple(t) for t in a})


class ConfigTest(unittest.TestCase):

    def test_text_round_trip(self):
        for name, config in PROFILES.items():
            with self.subTest(profile=name):
                config = _replace(config, name=name.replace("_", "-"), sid_version="0123456789abcdef",
                                  history=[[("action", "RATING"), ("min_value", 4.0)]])
                self.assertEqual(glass_config.from_text(glass_config.to_text(config)), config)

    def test_profile_fills_what_is_absent(self):
        config = glass_config.from_text("profile: PAPER levels: 64 levels: 128 levels: 128")
        self.assertEqual((config.bins, config.bos, config.gate_input), (20, 321, "MEMORY"))
        self.assertEqual((config.tier_position, config.tier_similarity), ("LAST", "COSINE"))
        self.assertEqual(config.vocabulary, 328)
        self.assertEqual(glass_config.from_text("").bos, 384)

    def test_faults_are_named(self):
        for text, what in (("depth: 3", "unknown field depth"), ("d: 3 d: 3", "twice"), ("profile: OTHER", "profile"),
                           ("levels: 8 levels: 8", "levels"), ("vocabulary: 10", "vocabulary"),
                           ("beam: 2000", "beam"), ("tier_edges: 1 tier_edges: 0", "tier_edges"),
                           ("neighbours: 64", "neighbours"), ("gate_input: BOTH", "gate_input")):
            with self.assertRaisesRegex(ValueError, what, msg=text):
                glass_config.from_text(text)

    def test_released_size(self):
        shapes = glass_config.weight_shapes(glass_config.make("COMPAT"))
        self.assertEqual(sum(int(np.prod(shape)) for shape in shapes.values()), 2_968_416)

    def test_wrong_tensors_are_named(self):
        model = twin.Glass(PROFILES["dense"])
        weights = {name: value.detach().numpy() for name, value in model.named_weights().items()}
        with self.assertRaisesRegex(ValueError, "tier.w1"):
            model.load_weights({k: v for k, v in weights.items() if k != "tier.w1"})
        with self.assertRaisesRegex(ValueError, "tensor tier.b1: shape"):
            model.load_weights({**weights, "tier.b1": np.zeros(3, np.float32)})


if __name__ == "__main__":
    unittest.main()
