"""Every chapter has what a reader counts on: a badge, a setup cell, its mode, described figures, exercises."""

import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path, kind=None):
    return [cell for cell in json.loads(path.read_text())["cells"] if kind in (None, cell["cell_type"])]


def source(cell):
    return "".join(cell["source"])


def test_it_opens_with_its_own_badge_and_number(path):
    first = source(cells(path)[0])
    assert re.match(rf"# {int(path.stem[:2])}\. \S", first)
    assert f"{ADDRESS.replace('https://github.com', 'https://colab.research.google.com/github')}/blob/main" in first
    assert f"notebooks/{path.name})" in first


def test_its_setup_cell_installs_on_colab_alone(path):
    setup = cells(path, "code")[0]
    assert "nbval-skip" in setup["metadata"]["tags"]
    assert 'if "google.colab" in sys.modules:' in source(setup)
    assert f"git+{ADDRESS}" in source(setup) and "==" not in source(setup)


def test_it_begins_with_its_mode_and_budget(path):
    assert any(f'begin("{path.stem}")' in source(cell) for cell in cells(path, "code"))


def test_every_picture_has_a_caption_and_alt_text(path):
    for cell in cells(path, "code"):
        if any(key.startswith("image/") for output in cell["outputs"] for key in output.get("data", {})):
            described = cell["metadata"].get("mystnb", {})
            assert len(described.get("image", {}).get("alt", "")) > 30, source(cell)
            assert len(described.get("figure", {}).get("caption", "")) > 20, source(cell)


def test_it_has_exercises_with_hints_solutions_and_checks(path):
    text = "\n".join(map(source, cells(path, "markdown")))
    labels = re.findall(r":label: (ex-\S+)", text)
    assert len(labels) >= 4
    assert re.findall(r":{3,}\{solution\} (ex-\S+)", text) == labels
    assert len(re.findall(r"dropdown\} Hint", text)) >= len(labels)
    checks = [cell for cell in cells(path, "code") if "hide-input" in cell["metadata"].get("tags", [])]
    assert sum("assert" in source(cell) for cell in checks) >= len(labels)


def test_it_is_committed_with_clean_outputs(path):
    assert path.stat().st_size < 1_000_000
    code = cells(path, "code")
    assert all(cell["execution_count"] for cell in code[1:] if source(cell).strip())
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
