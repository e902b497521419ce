"""README, the pages of docs/ and the docstrings: what they show runs, what they name is there.

A page's Python blocks run one after the other, in an empty folder, on stand-ins: `SETUP` has what a
page takes as given, and `SMALLER` what its sizes are here. A comment behind an expression that is a
literal is its value or, of a tensor, a tuple its shape: `# (2, 16)`.
"""

import ast
import configparser
import importlib.util
import inspect
import pathlib
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_flows
from keras_flows import data, hub, layers, networks, optimizers, zoo

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "zoo" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))
SMALLER = {
    r"depth=32": "depth=1, width=4",
    r"depth=16": "depth=2",
    r"epochs=\d+": "epochs=1",
    r"levels=3": "levels=1",
    r"sample\(64": "sample(4",
    r"Glow\(\(32, 32, 3\)\)": "Glow((32, 32, 3), levels=1, depth=1, width=4)",
    r"32, 32(?!.*count)": "8, 8",
    r"(NSF\((?:input_shape=)?\(\d+,\))(?!.*depth|\)\.count)": r"\1, depth=1, width=8",
}
# What the tests' environment has not: blocks that import it are for where somebody installed it.
ELSEWHERE = re.compile(r"(?m)^import (keras_tuner|polars|pydot|tensorboard)$")
IMAGES = {"cifar10": (8, 8, 3), "mnist": (28, 28, 1)}
SETUP = {
    "README.md": "theta, x, observed = rows(64, 5), rows(64, 8), rows(8)",
    "conditional_densities.md": "theta, x, observed = rows(64, 5), rows(64, 8), rows(8)",
    "depth_and_memory.md": "x = rows(4, 6)",
    "devices.md": "train = validation = images((8, 8, 3))",
    "images.md": "write_images('photos')",
    "index.md": "x = rows(64, 2)",
    "keras_world.md": "x, held_out = rows(64, 3), rows(16, 3)",
    "onnx_and_openvino.md": "model = keras_flows.zoo.NICE((8, 8, 1), depth=1, width=4)\n"
    "images = images((8, 8, 1))\nmodel.adapt(images)\nmodel.export('served/mnist/1')",
    "tabular_data.md": "rows, held_out, new_rows = rows(64, 30), rows(16, 30), rows(4, 30)",
    "troubleshooting.md": "rows, held_out = rows(64, 4), rows(16, 4)",
}


def blocks(text, language):
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", inspect.cleandoc(text))


def named(path):
    return str(path.relative_to(ROOT))


def literal(text):
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return None


def agree(value, wanted):
    if isinstance(wanted, dict):
        return value.keys() == wanted.keys() and all(
            agree(value[key], wanted[key]) for key in wanted
        )
    if isinstance(wanted, tuple) and hasattr(value, "shape"):
        value = tuple(value.shape)
    return wanted is ... or value == wanted


def run(code, names):
    """Executes a block, smaller."""
    for pattern, smaller in SMALLER.items():
        code = re.sub(pattern, smaller, code)
    execute(code, names)


def execute(code, names):
    """Executes code, and compares its values with the comments behind them."""
    for node in ast.parse(code).body:
        if not isinstance(node, ast.Expr):
            exec(compile(ast.Module([node], []), "<block>", "exec"), names)
        if not isinstance(node, ast.Expr | ast.Assign):
            continue
        result = node.value if isinstance(node, ast.Expr) else node.targets[0]
        value = eval(ast.unparse(result), names)
        behind = code.splitlines()[node.end_lineno - 1][node.end_col_offset :]
        wanted = literal(behind.strip().removeprefix("#").strip())
        assert wanted is None or agree(value, wanted), f"{ast.unparse(node)}: {value}"


def rows(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def images(shape, count=4):
    return np.random.default_rng(0).integers(0, 256, (count, *shape), "uint8")


def write_images(folder):
    pathlib.Path(folder).mkdir()
    for i, image in enumerate(images((48, 40, 3))):
        keras.utils.save_img(f"{folder}/{i}.png", image)


@pytest.fixture
def stand_ins(monkeypatch, tmp_path, data_dir):
    """An empty folder to work in, and to be a hub; of datasets a batch, random if not at hand."""
    load = data.load

    def few(name, *, split, batch_size, labels=False, **options):
        if name not in IMAGES:
            options = {"data_dir": data_dir, "labels": labels, **options}
            return load(name, split=split, batch_size=batch_size, **options).take(1)
        x = images(IMAGES[name])
        return tf.data.Dataset.from_tensor_slices((x, np.arange(len(x))) if labels else x).batch(4)

    def copy_to_hub(folder, address):
        shutil.copytree(folder, tmp_path / "hub" / address.partition("://")[2], dirs_exist_ok=True)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "load", few)
    monkeypatch.setattr(hub, "upload", copy_to_hub)
    monkeypatch.setattr(
        hub, "download", lambda address, _: tmp_path / "hub" / address.partition("://")[2]
    )


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p.read_text(), "python")], ids=named)
def test_a_page_runs(page, stand_ins):
    names = {
        "keras_flows": keras_flows,
        "rows": rows,
        "images": images,
        "write_images": write_images,
    }
    exec(SETUP.get(page.name, ""), names)
    absent = set()
    for block in blocks(page.read_text(), "python"):
        missing = {each for each in ELSEWHERE.findall(block) if not importlib.util.find_spec(each)}
        if "plot_model" in block and not shutil.which("dot"):
            missing.add("Graphviz")
        absent |= missing
        if not missing:
            run(block, names)
    if absent:
        pytest.skip(f"all but what needs {sorted(absent)}")


def public():
    """What has a place of its own in the API, by its name."""
    for module in (layers, networks, optimizers, zoo):
        yield from ((f"{module.__name__}.{name}", getattr(module, name)) for name in module.__all__)
    for value in (keras_flows.Flow, keras_flows.Bijection, data.load, keras_flows.check_bijection):
        yield f"{value.__module__}.{value.__name__}", value


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("value", [pytest.param(value, id=name) for name, value in public()])
def test_an_example_runs(value, stand_ins):
    names = {"keras": keras, "np": np, "ops": keras.ops, "keras_flows": keras_flows}
    for block in blocks(value.__doc__, "python"):
        run(block, names)


def test_all_that_is_public_has_an_example():
    assert not [name for name, value in public() if not blocks(value.__doc__, "python")]


@pytest.mark.parametrize("page", [*PAGES, *TUTORIALS], ids=named)
def test_what_a_page_names_is_there(page):
    text = page.read_text().replace("\\\n", " ")
    for tool, rest in re.findall(r"tools/([\w/]+(?:\.\w+)?)([^\n`|]*)", text):
        path = ROOT / "tools" / tool.rstrip("/")
        assert path.exists(), tool
        sources = path.rglob("*.py") if path.is_dir() else [path]
        source = "".join(each.read_text() for each in sources if each.suffix == ".py")
        if source:
            assert not [flag for flag in re.findall(r"--\w+", rest) if f'"{flag}"' not in source]
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert set(re.findall(r"\.\[(\w+)\]", text)) <= set(setup["options.extras_require"])
    import tensorflow_probability as tfp

    modules = {"layers": layers, "networks": networks, "zoo": zoo, "keras_flows": keras_flows}
    modules |= {"tfb": tfp.bijectors, "tfd": tfp.distributions}
    for module, name in re.findall(rf"(?<![\w./>])({'|'.join(modules)})\.([a-zA-Z]\w*)", text):
        assert hasattr(modules[module], name) or name in ("md", "git"), f"{module}.{name}"
    for preset in re.findall(r'from_preset\(\s*"(\w+_\w+)"', text):
        assert preset in keras_flows.Flow.presets


@pytest.mark.parametrize("page", [*PAGES, *TUTORIALS], ids=named)
def test_links_lead_somewhere(page):
    prose = re.sub(r"(?ms)^```.*?^```$", "", page.read_text())
    for link in re.findall(r'[^"]\]\(([^)\s]+)\)', prose):  # of a tutorial, f["name"](x) is code
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"(?m)^#+ (.*)$", target.read_text())
            places = [re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings]
            assert anchor in places, link
