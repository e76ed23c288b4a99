"""Golden cases of a GLASS version: raw events in; SIDs, log-probabilities and items out, by the twin in float64.

One JSON object a line:
    name, events (kind, event_id, time_us, item_id, action, value, as imported), as_of_us, beam, count, exclude_seen
    expect: short_items (item ids of the short window, oldest first), long_items (their number), sids and
            log_probability (of each beam, best first), items, item_sids (of each recommended item), min_gap
An event at or after as_of_us is invisible. Behaviours are the visible events that a history rule matches and whose item
has a SID, in order (time_us, event_id). Items follow the beams, inside a SID highest prior first, then lowest id;
exclude_seen leaves out the items of all visible events. min_gap is the smallest difference of neighbouring candidates
that decides anything: an engine whose log-probabilities are off by less must list the same beams.
"""
import json
import random

import numpy as np
import torch

from models.training.glass import decode, history

_START_US = 1_700_000_000_000_000
_SECOND_US = 1_000_000
GAP_MIN = 5e-5


def behaviours(events, as_of_us, rules, row_of):
    """Catalogue rows of the visible behaviours, oldest first. rules: HistoryRule messages; none = every action."""

    def matches(event):
        if event["kind"] != "action":
            return False
        for rule in (dict(rule) for rule in rules):
            low, high = rule.get("min_value", -3.4e38), rule.get("max_value", 3.4e38)
            if str(rule["action"]).lower() == event["action"] and low <= event.get("value", 0) < high:
                return True
        return not rules

    seen = [event for event in events if event["time_us"] < as_of_us and matches(event) and event["item_id"] in row_of]
    return [row_of[event["item_id"]] for event in sorted(seen, key=lambda event: (event["time_us"], event["event_id"]))]


class Scorer:
    """A version as the engine sees it. model: twin.Glass, made float64; item_id, prior: one per catalogue row."""

    def __init__(self, model, catalogue, item_id, prior):
        self.model, self.catalogue = model.double().eval(), catalogue
        self.item_id, self.prior = np.asarray(item_id), np.asarray(prior)
        self.row_of = {int(item): row for row, item in enumerate(self.item_id)}
        self.trie = decode.Trie(catalogue.sid, catalogue.config.levels)
        order = np.lexsort((self.item_id, -self.prior))
        self.items_of = {}
        for row in order:
            self.items_of.setdefault(tuple(int(c) for c in catalogue.sid[row]), []).append(int(self.item_id[row]))

    @torch.no_grad()
    def beams(self, user, beam):
        short = torch.from_numpy(user.short_tokens()).unsqueeze(0)
        features = torch.from_numpy(user.tier_features()).double().unsqueeze(0)
        retrieve = decode.retrieve_from(user, torch.float64)
        return decode.search(self.model, short, features, retrieve, beam, "valid", self.trie)

    def _gap(self, user, beam):
        """Smallest difference between neighbours of every step's ranking, the first candidate left out included."""
        gap, kept = np.inf, self.beams(user, beam)
        more = self.beams(user, beam + 1)  # wider early steps only add candidates
        for steps in (kept.steps, more.steps):
            for _, score in steps:
                finite = score[0][torch.isfinite(score[0])]
                if len(finite) > 1:
                    gap = min(gap, float((finite[:-1] - finite[1:]).min()))
        return gap

    def expect(self, case):
        """The `expect` object of a case."""
        config = self.catalogue.config
        rows = behaviours(case["events"], case["as_of_us"], config.history, self.row_of)
        user = history.recount(self.catalogue, rows)
        beams = self.beams(user, case["beam"])
        finite = torch.isfinite(beams.score[0])
        sids = beams.codes(config)[0][finite].tolist()
        seen = {event["item_id"] for event in case["events"] if event["time_us"] < case["as_of_us"]}
        items, item_sids = [], []
        for sid in sids:
            for item in self.items_of[tuple(sid)]:
                if len(items) < case["count"] and not (case["exclude_seen"] and item in seen):
                    items.append(item), item_sids.append(sid)
        return {"short_items": [int(self.item_id[row]) for row in user.ring], "long_items": user.long_count,
                "sids": sids, "log_probability": [float(x) for x in beams.score[0][finite]],
                "items": items, "item_sids": item_sids,
                "min_gap": self._gap(user, case["beam"])}


class CaseMaker:
    """Draws cases of a catalogue; `rules` decide which actions count, and some drawn actions do not."""

    def __init__(self, scorer, seed):
        self.scorer, self.random = scorer, random.Random(seed)
        weight = np.sqrt(scorer.prior + 0.1)
        self.ids, self.weight = [int(i) for i in scorer.item_id], list(weight / weight.sum())
        self.rules = [dict(rule) for rule in scorer.catalogue.config.history]

    def event(self, event_id, time_us, item_id, counted=True):
        rule = self.rules[0] if self.rules else {"action": "CLICK"}
        low = rule.get("min_value", 0.0)
        value = low + self.random.randrange(0, 3) * 0.5 if counted else low - 0.5
        return {"kind": "action", "event_id": event_id, "time_us": time_us, "item_id": item_id,
                "action": str(rule["action"]).lower(), "value": value}

    def events(self, count, ids=None, ties=0.2, ignored=0.0, unknown=0.0):
        r, result, time_us = self.random, [], _START_US
        items = r.choices(ids, k=count) if ids else r.choices(self.ids, self.weight, k=count)
        for number, item in enumerate(items):
            time_us += 0 if number and r.random() < ties else r.randint(1, 90_000) * _SECOND_US
            item = 10**12 + number if r.random() < unknown else item
            result.append(self.event(number + 1, time_us, item, r.random() >= ignored or "min_value" not in (
                self.rules[0] if self.rules else {})))
        return result

    def case(self, name, events, beam=None, count=10, exclude_seen=True, as_of_us=None):
        newest = max((event["time_us"] for event in events), default=_START_US)
        self.random.shuffle(events)  # the order in a file means nothing
        return {"name": name, "events": events, "as_of_us": as_of_us or newest + _SECOND_US,
                "beam": beam or self.scorer.catalogue.config.beam, "count": count, "exclude_seen": exclude_seen}

    def standard(self):
        """[(name, function that draws the case)], every edge the engine has to get right."""
        n = self.scorer.catalogue.config.short_items
        sid = self.scorer.catalogue.sid
        one = [int(self.scorer.item_id[row]) for row in np.flatnonzero(sid[:, 0] == np.bincount(sid[:, 0]).argmax())]

        def at_newest():
            events = self.events(n + 20, ties=0.5)
            return self.case("as_of_is_exclusive", events, as_of_us=max(event["time_us"] for event in events))

        return [("empty", lambda: self.case("empty", [])),
                ("one_event", lambda: self.case("one_event", self.events(1))),
                ("short_7", lambda: self.case("short_7", self.events(7))),
                ("window_full", lambda: self.case("window_full", self.events(n))),
                ("long_1", lambda: self.case("long_1", self.events(n + 1))),
                ("typical", lambda: self.case("typical", self.events(n + 150))),
                ("long_600", lambda: self.case("long_600", self.events(600))),
                ("one_bucket", lambda: self.case("one_bucket", self.events(n + 60, one))),
                ("ignored_actions", lambda: self.case("ignored_actions", self.events(n + 80, ignored=0.4))),
                ("unknown_items", lambda: self.case("unknown_items", self.events(n + 40, unknown=0.3))),
                ("as_of_is_exclusive", at_newest),
                ("seen_allowed", lambda: self.case("seen_allowed", self.events(n + 100), exclude_seen=False)),
                ("beam_1", lambda: self.case("beam_1", self.events(n + 30), beam=1)),
                ("beam_50_count_40", lambda: self.case("beam_50_count_40", self.events(n + 90), beam=50, count=40))]

    def cases(self, tries=40):
        """All standard cases with `expect`, redrawn until nothing hangs on rounding; raises if that never happens."""
        result = []
        for name, draw in self.standard():
            for _ in range(tries):
                case = draw()
                case["expect"] = self.scorer.expect(case)
                if case["expect"]["min_gap"] >= GAP_MIN:
                    break
                if not case["events"]:
                    break  # there is only one empty history
            else:
                raise ValueError(f"golden case {name}: no draw of {tries} has a gap of {GAP_MIN}")
            result.append(case)
        return result


def write_cases(path, cases):
    with open(path, "w") as file:
        for case in cases:
            file.write(json.dumps(case, sort_keys=True, separators=(",", ":")) + "\n")


def read_cases(path):
    with open(path) as file:
        return [json.loads(line) for line in file]
