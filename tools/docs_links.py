"""A hook of MkDocs: links that lead out of docs/, as they do on GitHub.

Pictures become part of the site; all else is linked where the repository is.
"""

import pathlib
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parent.parent
OUTSIDE = re.compile(r"\]\((?:\.\./)+([^)#]+)(#[^)]*)?\)")


def on_files(files, config):
    """Adds the pictures that pages show from elsewhere in the repository."""
    texts = [page.content_string for page in files.documentation_pages()]
    linked = {path for text in texts for path, _ in OUTSIDE.findall(text)}
    for path in sorted(path for path in linked if path.endswith(".png")):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    def replace(match):
        path, anchor = match[1], match[2] or ""
        depth = page.file.src_uri.count("/")
        if (ROOT / "docs" / path).exists() and match[0].count("../") == depth:
            return match[0]  # from a folder of docs/ to another page
        if not (ROOT / path).exists():
            raise FileNotFoundError(f"{page.file.src_uri} links to {path}, which does not exist")
        if path.endswith(".png"):
            return f"]({'../' * depth}{path})"
        return f"]({config.repo_url}/blob/main/{path}{anchor})"

    return OUTSIDE.sub(replace, markdown)
