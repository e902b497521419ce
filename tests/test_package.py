"""The package as a whole: versions, exports, and what it says under another Keras backend."""

import os
import pathlib
import runpy
import subprocess
import sys

import keras
import pytest

import keras_flows

ROOT = pathlib.Path(__file__).parent.parent


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
