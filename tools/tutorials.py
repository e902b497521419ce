#!/usr/bin/env python
"""Runs tutorials and keeps their pictures. As a hook of MkDocs: makes pages of them, runs nothing.

tools/tutorials.py
tools/tutorials.py two_moons coupling --output /tmp

A tutorial is a script of cells, in the percent format that Jupytext and editors know. The picture
of its n-th cell of code is NAME-n.png, the figure that the cell leaves open.
"""

import argparse
import contextlib
import pathlib
import re
import tempfile

DOCS = pathlib.Path(__file__).parent.parent / "docs"
PICTURES = DOCS / "pictures" / "tutorials"
DPI = 100
TUTORIALS = {path.stem: path for path in sorted((DOCS / "tutorials").glob("*.py"))}


def main():
    import matplotlib
    import pictures
    import threads

    matplotlib.use("Agg")
    threads.one_for_an_operation()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[*TUTORIALS], help=f"of {[*TUTORIALS]}")
    parser.add_argument("--output", type=pathlib.Path, default=PICTURES)
    options = parser.parse_args()
    unknown = sorted(set(options.names) - TUTORIALS.keys())
    if unknown:
        parser.error(f"there are no tutorials {unknown}, but {[*TUTORIALS]}")
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        for old in output.glob(f"{name}-*.png"):
            old.unlink()
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            for n, figure in run(TUTORIALS[name]):
                pictures.save(figure, output / f"{name}-{n}.png", DPI)


def cells(path):
    """(is_code, text) of each of a tutorial's cells, the text of prose without its `#`."""
    _, *parts = re.split(r"(?m)^# %%(.*)\n", path.read_text())
    for kind, text in zip(parts[::2], parts[1::2]):
        is_code = "[markdown]" not in kind
        yield is_code, text.strip("\n") if is_code else re.sub("(?m)^# ?", "", text).strip("\n")


def run(path, execute=exec):
    """Runs a tutorial's cells of code one after the other: (n, figure) of those with a picture."""
    from matplotlib import pyplot

    pyplot.close("all")  # what others left open is no picture of it
    names = {"__name__": "__main__"}
    for n, code in enumerate((text for is_code, text in cells(path) if is_code), start=1):
        execute(code, names)
        if pyplot.get_fignums():
            yield n, pyplot.gcf()
            pyplot.close("all")


def page(path):
    """A tutorial as Markdown: the prose, the code, and behind it the pictures that are there."""
    blocks, heading, n = [], [], 0
    for is_code, text in cells(path):
        if not is_code:
            blocks.append(text)
            heading = re.findall("(?m)^#+ (.*)$", text)[-1:] or heading
            continue
        n += 1
        blocks.append(f"```python\n{text}\n```")
        picture = PICTURES / f"{path.stem}-{n}.png"
        if picture.exists():
            blocks.append(f"![{heading[0]}](../{picture.relative_to(DOCS).as_posix()})")
    script = f"This page is a script, [{path.name}]({path.name})"
    blocks.insert(1, f"{script}: [run it](index.md#to-run-them), by cells or as a notebook.")
    return "\n\n".join(blocks) + "\n"


def on_files(files, config):
    from mkdocs.structure.files import File

    for name, path in TUTORIALS.items():
        files.append(File.generated(config, f"tutorials/{name}.md", content=page(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links to a script lead to its page, but for those on the page itself."""

    def replace(match):
        own = page.file.src_uri == f"tutorials/{match[2]}.md"
        return match[0] if own else f"]({match[1]}{match[2]}.md"

    names = "|".join(TUTORIALS)
    return re.sub(rf"\]\(((?:[./]|tutorials/)*)({names})\.py(?=[#)])", replace, markdown)


if __name__ == "__main__":
    main()
