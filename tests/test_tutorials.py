"""The tutorials: what they name is there, the site shows them whole, and each runs to its end."""

import ast
import functools
import re
import runpy
from types import SimpleNamespace

import matplotlib
import pytest
from conftest import ROOT
from test_docs import execute

import keras_flows
from keras_flows import data

tool = SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "tutorials.py")))
PAGES = ROOT / "docs" / "tutorials"
each = pytest.mark.parametrize("path", tool.TUTORIALS.values(), ids=tool.TUTORIALS)


def code_of(path):
    return [text for is_code, text in tool.cells(path) if is_code]


def pictures_of(path):
    return {picture.name for picture in tool.PICTURES.glob(f"{path.stem}-*.png")}


@each
def test_cells_are_short_and_hold_all_of_the_code(path):
    (is_code, first), *_ = tool.cells(path)
    assert not is_code and first.startswith("# ")
    assert all(text for _, text in tool.cells(path))
    assert max(len(code.splitlines()) for code in code_of(path)) <= 15
    bodies = [ast.parse(code).body for code in code_of(path)]
    assert sum(map(len, bodies)) == len(ast.parse(path.read_text()).body)
    assert any(isinstance(node, ast.Assert) for body in bodies for node in body)


def dotted(node):
    """`["keras_flows", "zoo", "NSF"]` of such an expression; None of others."""
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value)
        return owner and [*owner, node.attr]
    return [node.id] if isinstance(node, ast.Name) else None


@each
def test_what_a_tutorial_takes_from_the_package_is_there(path):
    tree = ast.parse(path.read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {}
    exec(compile(ast.Module(imports, []), path.name, "exec"), names)
    used = [dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    modules = {
        name
        for name, value in names.items()
        if getattr(value, "__name__", "").startswith("keras_flows") and not isinstance(value, type)
    }
    used = [chain for chain in used if chain and chain[0] in modules]
    assert ["keras_flows"] in [chain[:1] for chain in used]
    for first, *rest in used:
        functools.reduce(getattr, rest, names[first])
    for preset in re.findall(r'from_preset\("(\w+)"', path.read_text()):
        assert preset in keras_flows.Flow.presets


@each
def test_the_site_shows_a_tutorial_with_its_pictures(path):
    page = tool.page(path)
    assert f"- tutorials/{path.stem}.md\n" in (ROOT / "mkdocs.yml").read_text()
    assert f"]({path.name})" in (PAGES / "index.md").read_text()
    assert all(f"```python\n{code}\n```" in page for code in code_of(path))
    links = re.findall(r"\]\(([^)#\s]+)", re.sub(r"(?ms)^```.*?^```$", "", page))
    assert path.name in links
    assert all((PAGES / link).exists() for link in links if "://" not in link)
    drawing = [n for n, code in enumerate(code_of(path), 1) if re.search(r"\b(py)?plot\.", code)]
    assert pictures_of(path) == {f"{path.stem}-{n}.png" for n in drawing}
    assert [link.split("/")[-1] for link in links if link.endswith(".png")] == [
        f"{path.stem}-{n}.png" for n in drawing
    ]


def test_links_to_a_script_lead_to_its_page():
    def on_page(uri, markdown):
        page = SimpleNamespace(file=SimpleNamespace(src_uri=uri))
        return tool.on_page_markdown(markdown, page, None, None)

    assert on_page("serving.md", "[a](tutorials/serving.py)") == "[a](tutorials/serving.md)"
    assert on_page("tutorials/images.md", "[a](serving.py#b)") == "[a](serving.md#b)"
    assert on_page("api/zoo.md", "[a](../tutorials/images.py)") == "[a](../tutorials/images.md)"
    for link in ("[a](serving.py)", "[a](../tools/serving.py)", "[a](other.py)"):
        assert on_page("tutorials/serving.md", link) == link


def test_pictures_are_small_and_of_tutorials_that_there_are():
    pictures = sorted(tool.PICTURES.iterdir())
    assert {picture.name for picture in pictures} == set().union(
        *map(pictures_of, tool.TUTORIALS.values())
    )
    sizes = [picture.stat().st_size for picture in pictures]
    assert max(sizes) <= 80_000 and sum(sizes) <= 1_200_000


@pytest.mark.slow
@each
def test_a_tutorial_runs(path, tmp_path, data_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "load", functools.partial(data.load, data_dir=data_dir))
    matplotlib.use("Agg")
    drawn = set()
    for n, figure in tool.run(path, execute):
        assert all(ax.has_data() or not ax.axison for ax in figure.axes)
        drawn.add(f"{path.stem}-{n}.png")
    assert drawn == pictures_of(path)
