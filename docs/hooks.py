"""Hooks of MkDocs: pages and source files outside docs/ become pages of the site.

The Markdown files link to each other as they do in the repository. Here, links to source files lead
to generated pages that show them, so that the site is complete without the repository.
"""

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# Page of the site: Markdown file of the repository.
PAGES = {
    "index.md": "README.md",
    "datasets.md": "datasets/README.md",
    "tools.md": "tools/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)\s#]+)(#[^)\s]*)?(?=\))")
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", ".md": "markdown"}


def on_files(files: Files, config) -> Files:
    """Add the pages of `PAGES`, and a page for each source file that a page links to."""
    for page, path in PAGES.items():
        if (ROOT / path).is_file():
            content = (ROOT / path).read_text(encoding="utf-8")
            files.append(File.generated(config, page, content=content))
    for file in files.documentation_pages():
        for link in _LINK.finditer(file.content_string):
            target = _target(file.src_uri, link[1])
            if target.startswith("source/"):
                source = target.removeprefix("source/").removesuffix(".md")
                _add_source(ROOT / source, files, config)
    return files


def on_page_markdown(markdown: str, page, **_) -> str:
    """Replace links of the repository by links of the site."""

    def replace(link: re.Match) -> str:
        target = _target(page.file.src_uri, link[1])
        relative = os.path.relpath(target, PurePosixPath(page.file.src_uri).parent)
        return relative + (link[2] or "")

    return markdown if page.file.src_uri.startswith("source/") else _LINK.sub(replace, markdown)


def _target(page: str, link: str) -> str:
    """Return the file of the site that a link on a page leads to.

    Links to files that do not exist stay as they are; MkDocs reports them.
    """
    origin = ROOT / PAGES.get(page, f"docs/{page}")
    path = Path(os.path.normpath(origin.parent / link))
    if not path.exists() or not path.is_relative_to(ROOT):
        return str(PurePosixPath(page).parent / link)
    inside = path.relative_to(ROOT).as_posix()
    for name, source in PAGES.items():
        if inside == source:
            return name
    return inside.removeprefix("docs/") if inside.startswith("docs/") else f"source/{inside}.md"


def _add_source(path: Path, files: Files, config) -> None:
    """Add a page that shows a source file, or the list of the Python files in a folder."""
    name = path.relative_to(ROOT).as_posix()
    if f"source/{name}.md" in files.src_uris:
        return
    if path.is_dir():
        children = sorted(path.glob("[!_]*.py"))
        text = "\n".join(f"- [{child.name}]({path.name}/{child.name}.md)" for child in children)
        for child in children:
            _add_source(child, files, config)
    else:
        language = _LANGUAGES.get(path.suffix, "text")
        text = f"````{language}\n{path.read_text(encoding='utf-8').rstrip()}\n````"
    content = f"# {name}\n\n{text}\n"
    files.append(File.generated(config, f"source/{name}.md", content=content))
