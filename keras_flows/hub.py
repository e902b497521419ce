"""The hubs of Hugging Face and Kaggle: from an address to a folder of this machine, and back.

    hf://USER/REPOSITORY[@REVISION]
    kaggle://USER/MODEL/keras/VARIATION[/VERSION]

Each by its own client, which keeps what it has fetched where its users know it to be.
"""

import contextlib
import importlib
import re

from keras_flows.version import __version__

HUGGING_FACE, KAGGLE = "hf://", "kaggle://"
FORMS = f"{HUGGING_FACE}USER/REPOSITORY or {KAGGLE}USER/MODEL/keras/VARIATION"
_NAME = r"[\w.-]+"
_FORM = re.compile(
    rf"{HUGGING_FACE}{_NAME}/{_NAME}(?P<revision>@.+)?"
    rf"|{KAGGLE}{_NAME}/{_NAME}/keras/{_NAME}(?P<version>/\d+)?",
    re.ASCII,
)


def is_address(value):
    return isinstance(value, str) and value.startswith((HUGGING_FACE, KAGGLE))


def has_form(value, *, to_write=False):
    """Whether it is an address of one of the `FORMS`; to write to, one without a version."""
    match = _FORM.fullmatch(value) if is_address(value) else None
    return match is not None and not (to_write and any(match.groupdict().values()))


def download(address, names):
    """The folder with those of the files `names` that are at `address`; others may be there, too.

    Raises:
        ImportError: if the hub's client is not installed.
        ValueError: for what is not there, is not for all, or cannot be reached.
    """
    with _client(address, "had") as client:
        if address.startswith(KAGGLE):
            return client.model_download(address.removeprefix(KAGGLE))
        repository, _, revision = address.removeprefix(HUGGING_FACE).partition("@")
        return client.snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=[*names],
            library_name="keras_flows",
            library_version=__version__,
        )


def upload(folder, address):
    """Puts the files of `folder` at `address`, which is made if it is new; raises as `download`."""
    with _client(address, "written") as client:
        if address.startswith(KAGGLE):
            client.model_upload(address.removeprefix(KAGGLE), str(folder))
        else:
            api = client.HfApi(library_name="keras_flows", library_version=__version__)
            repository = api.create_repo(address.removeprefix(HUGGING_FACE), exist_ok=True)
            api.upload_folder(repo_id=repository.repo_id, folder_path=folder)


@contextlib.contextmanager
def _client(address, done):
    """The package that speaks to the hub of `address`; its errors say what to do about them."""
    name = "kagglehub" if address.startswith(KAGGLE) else "huggingface_hub"
    login = "`kagglehub.login()`" if address.startswith(KAGGLE) else "`hf auth login`"
    try:
        client = importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{address} needs the package {name}: pip install 'keras_flows[hub]'"
        ) from error
    try:
        yield client
    except Exception as error:  # of many kinds, by client and what it builds on
        raise ValueError(
            f"{address} could not be {done}. What is private or gated, and what is to be written, "
            f"needs {login}; without a network, only what was fetched before can be had. "
            f"The hub's client says: {error}"
        ) from error
