"""Builds a ranker of any kind from one flat dictionary of settings, as sweeps and trainers describe them.

A setting is a field of Config (d, layers, ...), a constructor argument of the ranker (dropout, history, ...), an option
of trainer.fit (lr, patience, ...), or `drop`: tokenizer fields the ranker does without.
"""
import dataclasses

from models.training import baselines, trainer, twin
from models.training import config as grab_config

KINDS = ("grab", "din", "hstu", "bias", "popularity")
_MODEL = ("dropout", "embedding_dropout", "embedding_std", "history", "unit", "attention_hidden", "hidden", "crossed")


def split_settings(config, settings):
    """(config, model arguments, trainer options) of a settings dictionary; an unknown name raises ValueError."""
    names = {field.name for field in dataclasses.fields(grab_config.Config)}
    changes, arguments, options = {}, {}, {}
    for name, value in settings.items():
        if name in ("drop", "kind"):
            continue
        if name in _MODEL:
            arguments[name] = value
        elif name in trainer.DEFAULTS:
            options[name] = value
        elif name in names:
            changes[name] = value
        else:
            raise ValueError(f"unknown setting {name}")
    if "d" in changes or "heads" in changes:
        heads = changes.get("heads", config.heads)
        changes.setdefault("d_head", changes.get("d", config.d) // heads)
    config = dataclasses.replace(config, **changes)
    return grab_config.select_fields(config, set(settings.get("drop", ()))), arguments, options


def build(kind, config, arguments, seed):
    """A ranker of `kind` with start values drawn from `seed`."""
    shapes = grab_config.weight_shapes(config)
    if kind == "grab":
        return twin.Grab(config, shapes, seed, **arguments)
    if kind == "hstu":
        return baselines.Hstu(config, shapes, config.layers, seed=seed, **arguments)
    if kind == "din":
        return baselines.Din(config, seed=seed, **arguments)
    if kind == "bias":
        return baselines.BiasRegression(config, seed=seed, **arguments)
    if kind == "popularity":
        return baselines.Popularity(config)
    raise ValueError(f"unknown kind of ranker {kind}; known: {', '.join(KINDS)}")
