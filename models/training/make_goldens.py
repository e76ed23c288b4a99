"""Regenerates tests/conformance/grab_e2e: tiny random versions whose goldens start from raw events.

    python3 -m models.training.make_goldens --backstory build/release/bin/backstory --out tests/conformance/grab_e2e

The C++ engine loads each directory like any model version and must reproduce the twin's logits. Together they cover one
and three channels, post- and pre-norm, latent projections, windows, hidden open rows, several tasks, odd widths,
no mixing.
"""
import argparse
import os
import shutil

import torch

from models.training import config as grab_config
from models.training import export, goldens, twin

_SPARSE = {
    "p": ["item:ITEM_ID:item:97", "category:ITEM_CATEGORIES:category:13", "year:ITEM_YEAR:year:11",
          "class:ACTION_CLASS:class:17", "value:ACTION_VALUE:value:19", "position:POSITION:position:9",
          "scene:SCENE:scene:5", "hour:HOUR_OF_DAY:hour:29", "device:EVENT_CONTEXT:device:7:device"],
    "f": ["user:USER_ID:user:31", "item:ITEM_ID:item:97", "category:ITEM_CATEGORIES:category:13",
          "device:REQUEST_FEATURE:device:7:device", "year:ITEM_YEAR:year:11", "brand:ITEM_STRING:brand:5:brand",
          "scene:SCENE:scene:5", "slot:REQUEST_FEATURE:slot:5:cand.slot", "day:DAY_OF_WEEK:day:9"],
}
_DENSE = ["item_rate:ITEM_RATE", "user_rate:USER_RATE", "item_count:ITEM_LOG_COUNT", "user_count:USER_LOG_COUNT",
          "user_value:USER_MEAN_VALUE", "item_value:ITEM_MEAN_VALUE", "gap:USER_LOG_GAP", "age:ITEM_AGE",
          "price:ITEM_NUMBER:price", "bid:REQUEST_NUMBER:cand.bid", "category_rate:USER_CATEGORY_RATE"]

# name -> settings; `channels`: action classes per channel; `window_s`: label window.
VARIANTS = {
    "one_channel": {"channels": [[]]},
    "three_channels_pre": {"channels": [[], [1, 2, 3], [2]], "norm": "PRE", "layers": 3},
    "latent": {"channels": [[], [1, 2]], "latent": 6},
    "latent_three_pre": {"channels": [[], [1], [2, 3]], "latent": 5, "norm": "PRE", "layers": 1},
    "windows": {"channels": [[], [1, 2, 3]], "window_rows": 9, "window_sec": 30000},
    "hidden_open_rows": {"channels": [[], [0]], "open_rows": "HIDE", "window_s": 4000},
    "two_tasks_no_mixing": {"channels": [[], [1, 2]], "target_mixing": "false", "tasks": ["click", "buy"]},
    "odd_widths": {"channels": [[], [3]], "d": 13, "heads": 3, "d_head": 7, "ffn": 11, "embedding": 5,
                   "gate_mlp_hidden": 9, "head_hidden": 7, "n_pos": 5, "n_time": 20, "n_act": 6},
}


def model_text(name, channels, tasks=("click",), norm="POST", open_rows="AS_KNOWN", window_s=1800, target_mixing="true",
               **sizes):
    """model.textproto of one variant."""
    sizes = {**{"d": 16, "heads": 2, "d_head": 8, "layers": 2, "ffn": 24, "n_pos": 32, "n_time": 64, "n_act": 8,
                "embedding": 4, "gate_mlp_hidden": 16, "head_hidden": 16}, **sizes}
    lines = [f'name: "{name}"', "tokenizer {", "  feature_version: 1", "  hash_salt: 7"]
    for view, message in (("p", "partial"), ("f", "full")):
        for text in _SPARSE[view]:
            field, source, table, vocab, attribute = (text.split(":") + [""])[:5]
            extra = f' attribute: "{attribute}"' if attribute else ""
            lines.append(f'  {message} {{ name: "{field}" source: {source}{extra} table: "{table}" vocab: {vocab} }}')
    for text in _DENSE:
        field, source, attribute = (text.split(":") + [""])[:3]
        extra = f' attribute: "{attribute}"' if attribute else ""
        lines.append(f'  full_dense {{ name: "{field}" source: {source}{extra} prior: 0.2 prior_value: 2 scale: 0.5 }}')
    lines += ["  actions { action: CLICK action_class: 1 }",
              "  actions { action: RATING min_value: 4 action_class: 2 }",
              "  actions { action: PURCHASE action_class: 3 }",
              "  actions { action: RATING max_value: 2 action_class: 4 }",
              "  label { action: CLICK }"]
    for i, classes in enumerate(channels):
        listed = f" action_classes: {classes}" if classes else ""
        lines.append(f'  channels {{ name: "c{i}"{listed} }}')
    lines += [f"  label_window_us: {window_s * 1_000_000}", f"  open_rows: {open_rows}", "}"]
    lines += [f"{size}: {value}" for size, value in sizes.items()]
    lines += [f"norm: {norm}", f"target_mixing: {target_mixing}"] + [f'tasks: "{task}"' for task in tasks]
    return "\n".join(lines) + "\n"


def random_weights(config, seed):
    """Weights with no zeros and no symmetry, so that every term of the formulas shows in the logits."""
    model = twin.Grab(config, grab_config.weight_shapes(config), seed=seed, embedding_std=0.5)
    generator = torch.Generator().manual_seed(seed + 1000)
    weights = {}
    for name, p in model.named_weights().items():
        scale = 0.5 if name.rsplit(".", 1)[-1] in ("bpos", "btime", "bact") else 0.1
        weights[name] = (p.detach() + scale * torch.randn(p.shape, generator=generator)).numpy()
    return weights


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backstory", required=True, help="the backstory binary, for `tokenize --cases`")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    for seed, (name, settings) in enumerate(VARIANTS.items()):
        text = model_text(name, **settings)
        config = grab_config.from_text(text)
        weights = random_weights(config, seed)
        cases = goldens.CaseMaker(config, seed + 50).standard()
        tokens = goldens.tokenize_cases(arguments.backstory, cases, text)
        folder = os.path.join(arguments.out, name, "1")
        shutil.rmtree(folder, ignore_errors=True)
        export.write_version(folder, config, weights, goldens.score_cases(config, weights, cases, tokens))
        print(folder)


if __name__ == "__main__":
    main()
