"""The project's own promises: light imports, one address, docstrings, short files, a README that runs."""

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import dyndiff
from dyndiff.experiments.publish_demo import RESULTS, readme_block
from dyndiff.files import read_json

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "dyndiff").rglob("*.py"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ADDRESS = PYPROJECT["project"]["urls"]["Repository"]


def name_of(path):
    return str(path.relative_to(ROOT))


def modules():
    return pytest.mark.parametrize("path", MODULES, ids=map(name_of, MODULES))


def test_import_is_light():
    """Plots, data sets, devices and solvers come when they are used; torch itself comes at once."""
    heavy = "matplotlib sympy sklearn accelerate torchdiffeq diffusers scipy tyro PIL pyarrow".split()
    code = f"import sys, torch; before = set(sys.modules); import dyndiff; " \
           f"print(*[m for m in {heavy} if m in sys.modules and m not in before])"  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_everything_exported_is_there():
    assert all(hasattr(dyndiff, name) for name in dyndiff.__all__)
    assert len(set(dyndiff.__all__)) == len(dyndiff.__all__)


def test_version_is_pyprojects():
    assert dyndiff.__version__ == PYPROJECT["project"]["version"]


def imports(path):
    """The names of dyndiff's modules that a module imports, wherever it does so."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            found |= {node.module} if node.module else {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.parent.name == "dyndiff"], ids=lambda path: path.name
)
def test_no_module_imports_pictures_or_commands(path):
    """Experiments and `__main__` aside."""
    forbidden = {"plots", "cli"} if path.name not in ("__main__.py",) else {"plots"}
    if path.name != "cli.py":
        forbidden |= {name for name in imports(path) if name.startswith("experiments")}
    assert not imports(path) & forbidden


@modules()
def test_modules_can_be_imported(path):
    if path.name != "__main__.py":
        importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))


def public(tree):
    """Public functions, classes and methods of a module, by name."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                yield from ((f"{node.name}.{name}", inner) for name, inner in public(node))


@modules()
def test_everything_public_has_a_docstring(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert [name for name, node in public(tree) if not ast.get_docstring(node)] == []


@modules()
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) < 250


def texts():
    """What may name the project's address: everything that is read, but pyproject.toml."""
    patterns = (
        "*.md *.yml *.cff Makefile book/**/*.md book/**/*.yml book/**/*.py notebooks/**/*.ipynb notebooks/**/*.md"
    )
    patterns += " .github/**/*.yml .github/**/*.md dyndiff/**/*.py"
    return sorted({path for pattern in patterns.split() for path in ROOT.glob(pattern)})


PLACES = (
    r"github\.com/([\w.-]+/dyndiff)\b",
    r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)",
    r"raw\.githubusercontent\.com/([\w.-]+/dyndiff)\b",
)


@pytest.mark.parametrize("path", texts(), ids=name_of)
def test_every_address_of_the_project_is_pyprojects(path):
    repository = ADDRESS.removeprefix("https://github.com/")
    text = path.read_text()
    assert {found for place in PLACES for found in re.findall(place, text)} <= {repository}
    pages = re.findall(r"([\w-]+)\.github\.io/dyndiff", text)
    assert set(pages) <= {repository.split("/")[0].lower()}


def test_pyproject_names_the_address_once():
    assert (ROOT / "pyproject.toml").read_text().count(ADDRESS) == 1


README = ROOT / "README.md"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(not dyndiff.bundled(), reason="no model is bundled yet, and the README loads one")
def test_the_readmes_python_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert blocks("python")
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})


def test_the_readmes_commands_are_commands(monkeypatch):
    """Each parses; none is run."""
    from functools import wraps

    from dyndiff import cli

    given = []

    def silent(command):
        return wraps(command)(lambda *args, **kwargs: given.append(command.__name__))

    monkeypatch.setattr(cli, "COMMANDS", {name: silent(command) for name, command in cli.COMMANDS.items()})
    lines = [line.split("#")[0].split() for block in blocks("sh") for line in block.splitlines()]
    written = [line[1:] for line in lines if line[:1] == ["dyndiff"]]
    assert written
    for arguments in written:
        cli.main(arguments)
    assert given == [arguments[0] for arguments in written]


def test_the_readme_links_to_what_is_there():
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", README.read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_readme_shows_the_recorded_demo():
    """Its table and the sentence under it are what `publish_demo` makes of the record."""
    block = readme_block(read_json(RESULTS / "comparison.json"))
    assert block in README.read_text()


def test_the_recorded_demo_keeps_what_the_presets_promise():
    """Samples that look like digits, all ten of them, from both models."""
    for model in read_json(RESULTS / "comparison.json")["models"]:
        assert model["confident"] >= 0.85
        assert 0.03 <= min(model["classes"]) and max(model["classes"]) <= 0.2
