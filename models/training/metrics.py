"""Ranking metrics with bootstrap over users. numpy only."""
import numpy as np


class Ranked:
    """Scores sorted once, for many weighted AUCs."""

    def __init__(self, label, score):
        self.order = np.argsort(score, kind="stable")
        s, self.label = score[self.order], label[self.order].astype(np.float64)
        self.starts = np.flatnonzero(np.r_[True, s[1:] != s[:-1]]) if len(s) else np.zeros(0, np.int64)

    def auc(self, weight=None):
        """Area under the ROC curve, ties counted half; nan without both classes."""
        if not len(self.label):
            return float("nan")
        w = np.ones(len(self.label)) if weight is None else weight[self.order]
        positive = np.add.reduceat(w * self.label, self.starts)
        negative = np.add.reduceat(w * (1 - self.label), self.starts)
        total = positive.sum() * negative.sum()
        if total <= 0:
            return float("nan")
        below = np.cumsum(negative) - negative
        return float((positive * (below + 0.5 * negative)).sum() / total)


def auc(label, score, weight=None):
    """Area under the ROC curve of weighted samples."""
    return Ranked(label, score).auc(weight)


def user_aucs(user, label, score):
    """(user ids, AUC, impressions) of the users that have both classes."""
    order = np.argsort(user, kind="stable")
    user, label, score = user[order], label[order], score[order]
    starts = np.flatnonzero(np.r_[True, user[1:] != user[:-1]])
    ids, values, counts = [], [], []
    for a, b in zip(starts, np.r_[starts[1:], len(user)]):
        if 0 < label[a:b].sum() < b - a:
            ids.append(user[a])
            values.append(auc(label[a:b], score[a:b]))
            counts.append(b - a)
    return np.array(ids, np.int64), np.array(values), np.array(counts, np.float64)


def evaluate(user, label, logit):
    """AUC, GAUC (impression-weighted mean of the users' AUCs), log loss, PCOC (sum of predictions over positives)."""
    _, values, counts = user_aucs(user, label, logit)
    z = np.clip(logit, -30, 30)
    p = 1 / (1 + np.exp(-z))
    loss = np.mean(np.logaddexp(0, z) - label * z)
    return {"auc": auc(label, logit), "gauc": float((values * counts).sum() / counts.sum()) if len(values) else
            float("nan"), "log_loss": float(loss), "pcoc": float(p.sum() / max(1e-9, label.sum()))}


def paired_bootstrap(user, label, first, second, replicates=1000, seed=0):
    """95 % intervals of AUC and GAUC of `first` minus those of `second`, users drawn with replacement.

    first, second: lists of logits, one array per seed; a replicate averages each metric over the seeds before it
    subtracts, so no predictions are ever averaged.
    """
    users, index = np.unique(user, return_inverse=True)
    per_user = {}
    for key, runs in (("first", first), ("second", second)):
        table = np.full((len(runs), len(users)), np.nan)
        count = np.zeros(len(users))
        for run, logit in enumerate(runs):
            ids, values, counts = user_aucs(index, label, logit)
            table[run, ids], count[ids] = values, counts
        # A user has an AUC in every run or, with one class only, in none; those carry no weight.
        per_user[key] = (np.where(count > 0, np.nan_to_num(table).mean(0), 0.0), count)
    ranked = {"first": [Ranked(label, x) for x in first], "second": [Ranked(label, x) for x in second]}
    rng, areas, grouped = np.random.default_rng(seed), [], []
    for _ in range(replicates):
        multiple = np.bincount(rng.integers(0, len(users), len(users)), minlength=len(users)).astype(np.float64)
        weight = multiple[index]
        areas.append(np.mean([r.auc(weight) for r in ranked["first"]]) -
                     np.mean([r.auc(weight) for r in ranked["second"]]))
        gauc = []
        for key in ("first", "second"):
            values, count = per_user[key]
            w = multiple * count
            gauc.append((values * w).sum() / max(1e-9, w.sum()))
        grouped.append(gauc[0] - gauc[1])

    def interval(values):
        low, high = np.percentile(values, [2.5, 97.5])
        return {"mean": float(np.mean(values)), "low": float(low), "high": float(high)}

    return {"auc": interval(areas), "gauc": interval(grouped)}


def platt(label, logit, steps=50):
    """(a, b) of sigmoid(a * logit + b) by Newton's method on the log loss, with a tiny ridge towards (1, 0)."""
    a, b = 1.0, 0.0
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(a * logit + b, -30, 30)))
        g = np.array([((p - label) * logit).sum() + 1e-3 * (a - 1), (p - label).sum() + 1e-3 * b])
        v = p * (1 - p)
        h = np.array([[(v * logit * logit).sum() + 1e-3, (v * logit).sum()], [(v * logit).sum(), v.sum() + 1e-3]])
        step = np.linalg.solve(h, g)
        a, b = a - step[0], b - step[1]
        if np.abs(step).max() < 1e-12:
            break
    return float(a), float(b)
