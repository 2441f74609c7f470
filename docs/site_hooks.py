"""Hooks of the documentation site: pages that are outside docs/, and links to the source.

Links in the repository are relative to their file, so that they work where the files are browsed. On the site, a link
to another page is changed to that page's place, and one to a file of the source becomes its name. A link to nothing
stays as it is, and the strict build refuses it.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

_REPOSITORY = Path(__file__).resolve().parents[1]
_OTHER_PAGES = ("infra/README.md", "CONTRIBUTING.md", "CHANGELOG.md")
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s:]+)(#[^)\s]+)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are outside docs/."""
    for name in _OTHER_PAGES:
        files.append(File.generated(config, name, content=(_REPOSITORY / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Change links that lead out of docs/, or into it."""
    site_path = page.file.src_uri
    source = site_path if site_path in _OTHER_PAGES else f"docs/{site_path}"

    def changed(match: re.Match[str]) -> str:
        text, target, anchor = match.groups(default="")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        wanted = path if path in _OTHER_PAGES else path.removeprefix("docs/")
        if files.get_file_from_path(wanted) is not None:
            return f"[{text}]({posixpath.relpath(wanted, posixpath.dirname(site_path) or '.')}{anchor})"
        return text if (_REPOSITORY / path).exists() else match[0]

    return _LINK.sub(changed, markdown)
