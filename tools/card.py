#!/usr/bin/env python
"""Writes the presets' cards, and the tables of results in docs/presets.md and zoo/README.md.

    tools/card.py

All of it comes from the presets' config.json, metadata.json and recipe.json.
"""

import argparse
import re
import shlex

import keras_flows
from keras_flows import presets


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    zoo = keras_flows.Flow.presets
    for name in zoo:
        (presets.ZOO / name / presets.CARD).write_text(card(presets.ZOO / name))
    for path in PAGES:
        text = path.read_text()
        for mark, table in (("results", results(zoo)), ("papers", papers(zoo))):
            place = rf"(?s)(<!-- {mark} -->\n).*(<!-- /{mark} -->)"
            text = re.sub(place, rf"\1\n{table}\n\2", text)
        path.write_text(text)


def results(zoo):
    """The presets with weights, as a Markdown table."""
    rows = [
        "| preset | test data | here | published | parameters | core-minutes | PNG | WebP |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, metadata in zoo.items():
        if "results" in metadata:
            here = metadata["results"]
            cells = [
                f"`{name}`",
                here["dataset"],
                figure(here),
                published_figure(metadata),
                f"{metadata['parameter_count']:,}",
                spent(here),
                *(f"{here[key]:.2f}" if key in here else "" for key in COMPRESSED),
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def papers(zoo):
    """The architectures without weights, as a Markdown table."""
    rows = ["| preset | paper | parameters | published |", "| --- | --- | --- | --- |"]
    for name, metadata in zoo.items():
        if "results" not in metadata and "parameter_count" in metadata:
            paper = metadata["paper"]["arxiv"]
            cells = [
                f"`{name}`",
                f"[{paper}](https://arxiv.org/abs/{paper})",
                f"{metadata['parameter_count']:,}",
                published_figure(metadata),
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def spent(here, unit=""):
    """The minutes of a training, of cores by `unit`, or else of GPUs."""
    if "training_gpu_minutes" in here:
        return f"{here['training_gpu_minutes']:.1f} GPU-minutes"
    return f"{here['training_core_minutes']:.0f} {unit}".rstrip()


def figure(here):
    metric = here["metric"]
    return f"{here[metric]:.{DECIMALS[metric]}f} {UNITS[metric]}"


def published_figure(metadata):
    published = published_of(metadata)
    return f"{published['value']} {UNITS[published['metric']]}" if published else ""


def published_of(metadata):
    return metadata.get("paper", {}).get("published") or {}


def card(folder):
    """The text of a preset's README.md."""
    config, metadata, recipe = (
        presets.read(folder, name) for name in (presets.CONFIG, presets.METADATA, presets.RECIPE)
    )
    class_name = config["registered_name"].split(">")[-1]
    here = metadata.get("results")
    weights = "" if here else ", load_weights=False"
    parts = [
        f"# {folder.name}",
        describe(metadata),
        "```python\nimport keras_flows\n\n"
        f'model = keras_flows.zoo.{class_name}.from_preset("{folder.name}"{weights})\n```',
    ]
    if here:
        parts += [
            f"![samples]({presets.SAMPLES})",
            f"Samples at temperature 1{guided(metadata)}, seed 0, not chosen.",
            "## Results",
            measurements(folder.name, here, metadata),
        ]
    parts += ["## Data and training", training(folder.name, recipe, here)]
    if here:
        parts += ["## Use and limits", metadata.get("use", USE)]
    if "notes" in metadata:
        parts += ["## Notes", "\n".join(f"- {note}" for note in metadata["notes"])]
    return "\n\n".join(parts) + "\n"


def describe(metadata):
    if "description" in metadata:
        return metadata["description"]
    paper = metadata["paper"]["arxiv"]
    return f"The architecture of [arXiv:{paper}](https://arxiv.org/abs/{paper}), without weights."


def guided(metadata):
    return f", guidance {metadata['guidance']:g}" if "guidance" in metadata else ""


def measurements(name, here, metadata):
    rows = [
        "| | |",
        "| --- | --- |",
        f"| {here['dataset']}, {here['split']} | **{figure(here)}** |",
    ]
    published = published_of(metadata)
    if published:
        source = f"[arXiv:{metadata['paper']['arxiv']}](https://arxiv.org/abs/{metadata['paper']['arxiv']})"
        source = published.get("source", source)
        rows.append(f"| published ({source}) | {published_figure(metadata)} |")
    for key, what in COMPRESSED.items():
        if key in here:
            rows.append(f"| the same images as {what} | {here[key]:.2f} bits/dim |")
    rows += [
        f"| parameters | {metadata['parameter_count']:,} |",
        f"| training | {here['epochs']} epochs, {here['training_minutes']:.0f} minutes, "
        f"{spent(here, 'core-minutes')} |",
        f"| measured | {here['date']}, {here['machine']} |",
    ]
    return "\n".join(rows) + f"\n\n`tools/evaluate.py {shlex.quote(name)}` measures it again."


def training(name, recipe, here):
    if here is None:
        dataset = recipe.get("dataset") or "A dataset that TFDS does not have"
        which = next((text for start, text in WHICH.items() if dataset.startswith(start)), "")
        return f"{dataset}. {which}`recipe.json` is the training, as flags of `tools/train.py`."
    unseen = not recipe["validation_split"].startswith(f"{recipe['train_split']}[")
    return (
        f"Trained on `{recipe['train_split']}` of {recipe['dataset']}, "
        f"{'chosen by' if unseen else 'of which this part was watched:'} "
        f"`{recipe['validation_split']}`; `log.csv` is the course of it. `recipe.json` is the "
        f"whole recipe:\n\n```sh\ntools/train.py --preset {shlex.quote(name)} "
        f"--run {shlex.quote(f'runs/{name}')}\n```"
    )


USE = """\
To start from, to try a pipeline with, to compare with. It is small, trained for minutes,
and knows its own data only: unlike images can be given high likelihoods, too
([arXiv:1810.09136](https://arxiv.org/abs/1810.09136)), so a threshold on `log_prob` alone does not
tell whether an image belongs."""
PAGES = (presets.ZOO.parent / "docs" / "presets.md", presets.ZOO / "README.md")
WHICH = {
    "downsampled_imagenet": "That is the older of TFDS' two sets of this size, which cannot be "
    "downloaded any more; figures of the newer, imagenet_resized, are of easier images. ",
    "imagenet_resized": "That is the newer of TFDS' two sets of this size, whose images are easier "
    "than those of downsampled_imagenet, of which most published figures are. ",
}
NEEDED = ("dataset", "train_split", "validation_split")  # of a recipe
COMPRESSED = {"png_bits_per_dim": "one PNG", "webp_bits_per_dim": "one lossless WebP"}
UNITS = {
    "bits_per_dim": "bits/dim",
    "noisy_bits_per_dim": "bits/dim, of noisy images",
    "log_likelihood": "nats, of data in [0, 1]",
    "nats": "nats",
}
DECIMALS = {"bits_per_dim": 3, "noisy_bits_per_dim": 3, "log_likelihood": 2, "nats": 3}


if __name__ == "__main__":
    main()
