"""Golden cases: raw events and candidates, tokenized by `backstory tokenize --cases`, scored by the twin in float64.

docs/reference/model-files.md describes goldens.jsonl. Cases are drawn from a configuration: they use the action types,
scenes and categories it knows, so that every field and rule of it is exercised.
"""
import json
import os
import random
import subprocess
import tempfile

import numpy as np
import torch

from models.training import config as grab_config
from models.training import tensor_file, twin

_START_US = 1_700_000_000_000_000
_SECOND_US = 1_000_000
_ACTION_IDS = {"NONE": 0, "CLICK": 1, "CONVERSION": 2, "LIKE": 3, "RATING": 4, "DWELL": 5, "PURCHASE": 6, "DISLIKE": 7,
               "SHARE": 8}


class CaseMaker:
    """Draws cases for one configuration. `items` are the ids to choose from, `categories` the names they may have."""

    def __init__(self, config, seed, items=range(1, 60), categories=("news", "sport", "music", "film", "games"),
                 users=(), exposures=True):
        self.random = random.Random(seed)
        self.items, self.categories, self.users, self.exposures = list(items), list(categories), list(users), exposures
        self.rules = [dict(value) for name, value in config.tokenizer if name == "actions"]
        plain = {name: value for name, value in config.tokenizer if not isinstance(value, list)}
        self.window_s = max(1, plain.get("label_window_us", 0) // _SECOND_US)

    def item(self, item_id):
        r = self.random
        categories = sorted(r.sample(self.categories, r.randint(0, min(3, len(self.categories)))))
        return {"item_id": item_id, "categories": categories,
                "year": r.choice([0, 1977, 1994, 2003, 2016]), "title": f"item {item_id}",
                "numbers": {"price": round(r.uniform(1, 90), 2)}, "strings": {"brand": r.choice(["a", "b", "c"])}}

    def action(self, event_id, time_us, item_id, exposure_id=0):
        r = self.random
        rule = r.choice([rule for rule in self.rules if rule.get("action", "NONE") != "NONE"] or [{"action": "CLICK"}])
        low, high = max(0.5, rule.get("min_value", 0.5)), min(5.5, rule.get("max_value", 5.5))
        event = {"kind": "action", "event_id": event_id, "time_us": time_us, "item_id": item_id,
                 "action": str(rule["action"]).lower(), "value": int(r.uniform(low, max(low, high - 0.25)) * 2) / 2}
        if exposure_id:
            event["exposure_id"] = exposure_id
        return event

    def events(self, count, gap_s=4000, ties=0.3, late=0.2):
        """`count` rows: exposures with actions in time, late or none, and lone actions; a share of them in ties."""
        r, events, time_us, request, next_id = self.random, [], _START_US, 0, 1
        for _ in range(count):
            if not events or r.random() >= ties:
                time_us += r.randint(1, max(1, int(r.expovariate(1 / gap_s)))) * _SECOND_US
                request += 1
            item_id = r.choice(self.items)
            if not self.exposures or r.random() < 0.25:
                events.append(self.action(next_id, time_us, item_id))
                next_id += 1
                continue
            exposure = {"kind": "exposure", "event_id": next_id, "time_us": time_us, "item_id": item_id,
                        "position": r.randint(0, 40), "scene": r.choice(["feed", "search"]),
                        "context": {"device": r.choice(["phone", "desk"])}}
            if request % 2:
                exposure["request_id"] = request
            events.append(exposure)
            next_id += 1
            if r.random() < 0.5:
                wait_s = r.randint(0, self.window_s) if r.random() >= late else self.window_s + r.randint(1, 5000)
                events.append(self.action(next_id, time_us + wait_s * _SECOND_US, item_id, exposure["event_id"]))
                next_id += 1
        return sorted(events, key=lambda e: (e["time_us"], e["event_id"]))

    def case(self, name, count, candidates=7, future=0, in_request=False, **options):
        """One case of `count` rows, `future` of them at or after now; in_request: now belongs to the last request."""
        r, events = self.random, self.events(count + future, **options)
        times = sorted({event["time_us"] for event in events})
        now_us = (times[-1] if times else _START_US) + r.randint(1, 3000) * _SECOND_US
        if future and len(times) > future:
            now_us = times[-future]
        known = self.items if len(self.items) <= 80 else sorted({e["item_id"] for e in events} |
                                                                set(r.sample(self.items, 20)))
        result = {"name": name, "user": r.choice(self.users) if self.users else f"user-{name}", "scene": "feed",
                  "now_us": now_us, "events": events, "items": [self.item(i) for i in known], "counts": {},
                  "features": {"device": "phone", "age": 31.0}}
        requests = [event["request_id"] for event in events if event.get("request_id") and event["time_us"] < now_us]
        if in_request and requests:
            result["request_id"] = requests[-1]
        ids = [r.choice(known) for _ in range(candidates - 1)] + [9_999_999_999]  # the last is unknown to the catalog
        for i in ids[:-1]:
            cells = {}
            for _ in range(r.randint(0, 4)):
                action = _ACTION_IDS[str(r.choice(self.rules or [{}]).get("action", "CLICK"))]
                cells[(action, r.randint(0, 10))] = r.randint(1, 50)
            result["counts"][str(i)] = {"exposures": r.randint(0, 400), "cells": [
                {"action": a, "value_bin": b, "count": n} for (a, b), n in sorted(cells.items())]}
        result["candidates"] = {"item_ids": ids, "numbers": {"cand.bid": [round(r.uniform(0, 2), 3) for _ in ids]},
                                "texts": {"cand.slot": [r.choice(["top", "side"]) for _ in ids]}}
        return result

    def standard(self, long_rows=140):
        """The cases every version gets: no history, one event, odd lengths, ties, late actions, more than a page."""
        return [self.case("empty_history", 0), self.case("one_event", 1, ties=0.0), self.case("odd_length", 37),
                self.case("ties", 24, ties=0.8), self.case("own_request", 12, in_request=True),
                self.case("late_actions", 19, late=0.9), self.case("future_events", 14, future=4),
                self.case("bursts", 30, gap_s=3), self.case("long", long_rows, candidates=5)]


def write_cases(path, cases):
    with open(path, "w") as file:
        for case in cases:
            file.write(json.dumps(case, separators=(",", ":"), sort_keys=True) + "\n")


def tokenize_cases(tokenizer, cases, config_text):
    """Tensors of `cases` from the C++ tokenizer; `tokenizer` is the path of the backstory binary."""
    with tempfile.TemporaryDirectory() as folder:
        names = [os.path.join(folder, name) for name in ("cases.jsonl", "model.textproto", "tokens.safetensors")]
        write_cases(names[0], cases)
        with open(names[1], "w") as file:
            file.write(config_text)
        subprocess.run([tokenizer, "tokenize", "--cases", names[0], "--model-config", names[1], "--out", names[2]],
                       check=True)
        return tensor_file.read_tensors(names[2])[0]


def _ids(tensors, name, rows):
    offsets, ids = tensors[f"{name}.offsets"].astype(np.int64), tensors[f"{name}.ids"].astype(np.int64)
    matrix = np.full((rows, max(1, int(np.diff(offsets).max(initial=0)))), -1, np.int64)
    for row in range(rows):
        matrix[row, :offsets[row + 1] - offsets[row]] = ids[offsets[row]:offsets[row + 1]]
    return torch.from_numpy(matrix)


def score_case(model, tensors, number):
    """Logits [candidates, tasks] of one tokenized case by the serving form of the twin (model in float64)."""
    config, prefix = model.config, f"case{number}."
    columns, x_p = {name: [] for name in ("time_us", "action", "tie")}, []
    for c in range(config.channels):
        for name in columns:
            columns[name].append(torch.from_numpy(tensors[f"{prefix}p{c}.{name}"].astype(np.int64)))
        rows = len(columns["tie"][c])
        x_p.append(model.embed("p", {f.name: _ids(tensors, f"{prefix}p{c}.{f.name}", rows) for f in config.partial}))
    rows = len(tensors[f"{prefix}f.{config.full[0].name}.offsets"]) - 1
    dense = torch.from_numpy(tensors[f"{prefix}f.dense"].reshape(rows, -1).copy()).double()
    x_f = model.embed("f", {f.name: _ids(tensors, f"{prefix}f.{f.name}", rows) for f in config.full}, dense)
    cache, _ = model.encode_history(x_p, columns["time_us"], columns["action"], columns["tie"])
    return model.score(cache, x_f, columns["time_us"], columns["action"], columns["tie"],
                       int(tensors[f"{prefix}now_us"][0]), int(tensors[f"{prefix}tie"][0]))


def score_cases(config, weights, cases, tokens):
    """The cases with their logits. `weights` by tensor name; computed in float64 from the float32 weights."""
    model = twin.Grab(config, grab_config.weight_shapes(config)).double().eval()
    model.load_weights(weights)
    with torch.no_grad():
        return [{**case, "logits": [[float(np.float32(x)) for x in row] for row in score_case(model, tokens, i)]}
                for i, case in enumerate(cases)]
