"""Damaged files are refused in one line, or do no harm: `pytest -m long tests/test_mutations.py` for all 500.

A run's folder is damaged in one place in one of many ways; then the model is loaded, the run resumed and the
command line told to go on with it. The result goes to `dyndiff/results/mutations.json`.
"""

import json
import os
import pickle
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from dyndiff import Denoiser, Run
from dyndiff.cli import main
from dyndiff.files import newest_checkpoint
from dyndiff.records import RESULTS, write_record

COMMAND = ["train", "cunet-digits", "--batch-size", "2", "--steps", "3"]
NAMES = ("run.json", "config.json", "training.json", "manifest.json", "model.safetensors", "training.safetensors")

ODD = [
    None,
    True,
    -1,
    0,
    1,
    3,
    0.5,
    1e308,
    -1e308,
    float("nan"),
    10**9,
    10**400,
    "",
    "12",
    "nosuch",
    [],
    [1],
    {},
    {"a": 1},
]
"""What a JSON file may hold in place of what belongs there."""


class Executed:
    """A pickle that leaves a file behind if it is ever read."""

    def __reduce__(self):
        return (Path("executed").touch, ())


def flip(path, dice):
    """Change one to eight bytes."""
    data = bytearray(path.read_bytes())
    for _ in range(dice.randint(1, 8)):
        data[dice.randrange(len(data))] ^= dice.randint(1, 255)
    path.write_bytes(data)


def cut(path, dice):
    """Leave off an end."""
    data = path.read_bytes()
    path.write_bytes(data[: dice.randrange(len(data))])


def insert(path, dice):
    """Put bytes in between."""
    data, at = path.read_bytes(), dice.randrange(path.stat().st_size)
    path.write_bytes(data[:at] + dice.randbytes(dice.randint(1, 100)) + data[at:])


def swap(path, dice):
    """Give two files each other's names."""
    other = path.with_name(dice.choice([name for name in os.listdir(path.parent) if name != path.name]))
    path.rename(path.with_name("aside"))
    other.rename(path)
    path.with_name("aside").rename(other)


def remove(path, dice):
    """Remove the file, empty it, or put a folder in its place."""
    path.unlink()
    dice.choice([lambda: None, path.touch, path.mkdir])()


def execute(path, dice):
    """Put a pickle in its place."""
    path.write_bytes(pickle.dumps(Executed()))


def edit(path, dice):
    """Change, add or remove one value of a JSON file, or of a safetensors file's header."""
    data = path.read_bytes()
    start, end = (8, 8 + int.from_bytes(data[:8], "little")) if path.suffix == ".safetensors" else (0, len(data))
    value = json.loads(data[start:end])
    place = value
    while isinstance(key := dice.choice(list(place) if isinstance(place, dict) else range(len(place))), str | int):
        if not isinstance(place[key], dict | list) or not place[key] or dice.random() < 0.2:
            break
        place = place[key]
    kind = dice.choice(["change", "change", "change", "remove", "add"])
    if kind == "change":
        place[key] = dice.choice(ODD)
    elif kind == "remove":
        del place[key]
    elif isinstance(place, dict):
        place["odd"] = dice.choice(ODD)
    else:
        place.append(dice.choice(ODD))
    new = json.dumps(value).encode()
    path.write_bytes((len(new).to_bytes(8, "little") if start else b"") + new + data[end:])


MUTATIONS = (flip, cut, insert, swap, remove, execute, edit, edit, edit)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps of three."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    main([*COMMAND, "--checkpoint-every", "2", "--keep", "2", "--out", str(folder)])
    shutil.rmtree(folder / "step-000003")
    return folder


def outcome(load):
    """Loads, or is refused in one line."""
    try:
        load()
    except ValueError as error:
        assert "\n" not in str(error)
        return "refused"
    return "loaded"


def command_outcome(capsys):
    """Trains, or is refused in one line."""
    try:
        main([*COMMAND, "--out", "run"])
    except SystemExit as stopped:
        assert stopped.code == 2
        assert re.fullmatch(r"dyndiff: [^\n]+\n", capsys.readouterr().err)
        return "refused"
    return "loaded"


def mutate(count, run, capsys, commands):
    """Damage a run in many ways; how often each was refused, by the model, the run and (so many) the command."""
    results = Counter()
    for seed in range(count):
        dice = random.Random(seed)
        shutil.copytree(run, "run")
        checkpoint, name = newest_checkpoint("run"), dice.choice(NAMES)
        trusted = dice.random() < 0.5 and name != "manifest.json"
        if trusted:  # nothing is left but the files' own sense
            (checkpoint / "manifest.json").unlink()
        mutation = dice.choice(MUTATIONS)
        mutation(Path("run") / name if name == "run.json" else checkpoint / name, dice)
        kind = f"{mutation.__name__} {name.rpartition('.')[2]}" + (" without a manifest" if trusted else "")
        results[f"{kind}: model {outcome(lambda: Denoiser.load('run'))}"] += 1
        results[f"{kind}: run {outcome(lambda: Run.resume('run'))}"] += 1
        if seed < commands:
            results[f"{kind}: command {command_outcome(capsys)}"] += 1
        assert not Path("executed").exists()
        shutil.rmtree("run")
    return results


def test_damaged_files_are_refused_or_do_no_harm(run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sum(mutate(50, run, capsys, commands=15).values()) == 115


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_five_hundred_damages(run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = mutate(500, run, capsys, commands=500)
    write_record(RESULTS / "mutations.json", {"mutations": 500, "tracebacks": 0, "code_executed": 0,
                                              "outcomes": dict(sorted(results.items()))})  # fmt: skip
