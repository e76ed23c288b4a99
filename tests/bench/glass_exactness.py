"""Writes a copy of a GLASS version whose goldens are many drawn histories, for `backstory model verify` to run.

    PYTHONPATH=. /usr/bin/python3 tests/bench/glass_exactness.py models/zoo/glass-ml/1 OUT --seeds 72
    build/release/bin/backstory model verify OUT/glass-ml/1

OUT/NAME/1 must not exist yet. Cases are those of models.training.glass.goldens, the empty history left out, with seeds 100
and up; one whose ranking hangs on less than goldens.GAP_MIN is drawn again. At most 1,000 cases a copy: use two for more.
"""
import argparse
import os
import pathlib
import shutil

from models.training import export as grab_export
from models.training.glass import export, goldens

TRIES, FIRST_SEED = 40, 100


def cases(scorer, seeds):
    for seed in seeds:
        maker = goldens.CaseMaker(scorer, seed)
        for name, draw in maker.standard():
            for _ in range(TRIES if name != "empty" else 0):
                case = draw()
                case["expect"] = scorer.expect(case)
                if case["expect"]["min_gap"] >= goldens.GAP_MIN:
                    yield {**case, "name": f"{name}_{seed}"}
                    break


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=72)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    arguments = parser.parse_args()
    version = export.Version(str(arguments.version))
    folder = arguments.out / arguments.version.parent.name / arguments.version.name
    shutil.copytree(arguments.version, folder)
    os.remove(folder / "MANIFEST")
    drawn = list(cases(version.scorer, range(arguments.first_seed, arguments.first_seed + arguments.seeds)))
    goldens.write_cases(str(folder / "goldens.jsonl"), drawn)
    grab_export.write_manifest(str(folder))
    print(f"{len(drawn)} cases in {folder}")


if __name__ == "__main__":
    main()
