"""The package as a whole: versions, exports, and what it says under another Keras backend."""

import ast
import configparser
import os
import pathlib
import re
import runpy
import subprocess
import sys
from importlib.metadata import packages_distributions

import keras
import numpy as np
import pytest
from conftest import perturb
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import keras_flows
from keras_flows.layers.coupling import Coupling

ROOT = pathlib.Path(__file__).parent.parent
OF_A_LAYER = re.compile(r"class \w+\(.*(Bijection|Coupling|Partition)\)")


def test_another_backend_is_told_what_to_do():
    environment = {**os.environ, "KERAS_BACKEND": "torch", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", "import keras_flows"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "KERAS_BACKEND=tensorflow" in done.stderr


def test_another_backend_that_is_loaded_is_told_what_to_do(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(ImportError, match="KERAS_BACKEND=tensorflow.*Received: backend 'jax'"):
        runpy.run_path(str(ROOT / "keras_flows" / "__init__.py"))


@pytest.mark.parametrize("module", ["layers", "networks", "zoo"])
def test_every_public_class_is_documented_and_registered(module):
    namespace = vars(getattr(keras_flows, module))
    classes = {
        name: value
        for name, value in namespace.items()
        if isinstance(value, type) and value.__module__.startswith("keras_flows")
        if not name.startswith("_")
    }
    registered = [cls for cls in classes.values() if issubclass(cls, keras.layers.Layer)]
    assert registered
    for cls in registered:
        assert cls.__doc__
        assert keras.saving.get_registered_name(cls) == f"keras_flows>{cls.__name__}"


def test_the_version_is_the_changelog_s():
    assert f"## {keras_flows.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_version_is_the_citation_s():
    (version,) = re.findall("(?m)^version: (.*)$", (ROOT / "CITATION.cff").read_text())
    assert version == keras_flows.__version__


def imported(path):
    """The top-level modules that a file imports, in its functions, too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


def test_what_is_imported_is_required():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"].split("\n")
    required = {canonicalize_name(Requirement(line).name) for line in lines if line}
    providers = packages_distributions()

    def is_required(module):
        return required & {canonicalize_name(name) for name in providers.get(module, ())}

    modules = {name for path in (ROOT / "keras_flows").rglob("*.py") for name in imported(path)}
    assert {"keras", "requests"} <= modules
    others = modules - sys.stdlib_module_names - {"keras_flows"}
    # Of the extras "serving", which exporting does without, and "plot".
    extras = {"matplotlib", "tensorflow_serving"}
    assert {name for name in others if not is_required(name)} == extras


def test_only_keras_flows_plot_imports_matplotlib_and_not_before_it_draws():
    importing = [
        path.relative_to(ROOT / "keras_flows").as_posix()
        for path in (ROOT / "keras_flows").rglob("*.py")
        if "matplotlib" in imported(path)
    ]
    assert importing == ["plot/axes.py"]
    code = (ROOT / "keras_flows" / "plot" / "axes.py").read_text()
    top = [node for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert "matplotlib" not in {node.names[0].name for node in top}
    assert all("matplotlib" not in (getattr(node, "module", None) or "") for node in top)


def examples():
    """The Python blocks of docstrings, and of docs/, that write layers of one's own."""
    for module in sorted((ROOT / "keras_flows").rglob("*.py")):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                for block in re.findall(
                    r"```python\n(.*?)```", ast.get_docstring(node) or "", re.S
                ):
                    if OF_A_LAYER.search(block):
                        yield pytest.param(block, id=node.name)
    page = ROOT / "docs" / "writing_a_layer.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    yield from (pytest.param(block, id="docs") for block in blocks if OF_A_LAYER.search(block))


@pytest.mark.parametrize("code", examples())
def test_examples_run_and_are_invertible(code):
    names = {"keras": keras, "np": np, "ops": keras.ops, "keras_flows": keras_flows}
    before = set(names)
    exec(code, names)
    new = [value for name, value in names.items() if name not in before]
    layers = [value for value in new if isinstance(value, keras_flows.Bijection)]
    for kind in new:
        if isinstance(kind, type) and kind.__module__ == "builtins":
            if issubclass(kind, Coupling):
                layers.append(kind(keras_flows.networks.MLP(4)))
            elif issubclass(kind, keras_flows.Bijection):
                layers.append(kind())
    assert layers
    x = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")
    for layer in layers:
        keras_flows.check_bijection(layer, x)
        perturb(layer)
        assert np.any(np.abs(layer(x) - x) > 0.01)
