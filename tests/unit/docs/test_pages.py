"""Pages: their links lead somewhere, generated ones are current, and the migration names keys that exist."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from documented_commands import REPOSITORY, documents
from warren.cli import reference as commands
from warren.config import Recipe, Resources
from warren.config.reference import _models_of
from warren_serve import errors_reference as errors

DOCS = REPOSITORY / "docs"
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page, as GitHub makes them of its headings."""
    headings = _HEADING.findall(_FENCE.sub("", page.read_text()))
    plain = (re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def broken_links(page: Path) -> Iterator[str]:
    for target in _LINK.findall(_FENCE.sub("", page.read_text())):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        if not place.exists() or (anchor and place.suffix == ".md" and anchor not in anchors(place)):
            yield target


@pytest.mark.parametrize("page", documents(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    assert list(broken_links(page)) == []


def test_a_link_to_nothing_is_found(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text("# One, two\n[a](#one-two) [b](#three) [c](b.md) [d](https://example.com)\n```\n[e](c.md)\n```\n")
    assert list(broken_links(page)) == ["#three", "b.md"]


def test_the_site_has_every_page() -> None:
    class Loader(yaml.SafeLoader):
        """Reads the name of a Python function as text."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda loader, suffix, node: suffix)
    entries = yaml.load((REPOSITORY / "mkdocs.yml").read_text(), Loader)["nav"]
    listed = {page for entry in entries for page in ([entry] if isinstance(entry, str) else next(iter(entry.values())))}
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert listed == pages | {"infra/README.md", "CONTRIBUTING.md", "CHANGELOG.md"}


def test_the_page_of_errors_is_current() -> None:
    assert (DOCS / "reference" / "errors.md").read_text() == errors.reference(), (
        "run: python -m warren_serve.errors_reference"
    )
    source = "".join(path.read_text() for path in (REPOSITORY / "serve" / "warren_serve").glob("[!e]*.py"))
    assert [code for code, *_ in errors.CHOSEN if f'"{code}"' not in source and code[:7] != "unknown"] == []


def test_the_page_of_commands_is_current() -> None:
    assert (DOCS / "reference" / "cli.md").read_text() == commands.reference(), "run: python -m warren.cli.reference"


def test_the_migration_names_keys_that_exist() -> None:
    rows = re.findall(r"^\| [^|]+ \| `([a-z_.]+)` \|", (DOCS / "migration.md").read_text(), re.MULTILINE)
    assert len(rows) > 35
    assert [key for key in rows if not is_key(key)] == []
    assert not is_key("finetune.lora.ranks")


def is_key(key: str) -> bool:
    first, *rest = key.split(".")
    schema: type[BaseModel] = Recipe
    if first == "resources":
        schema = Resources
    else:
        rest = [first, *rest]
    for number, name in enumerate(rest):
        if name not in schema.model_fields:
            return False
        inner = list(_models_of(schema.model_fields[name].annotation))
        if number + 1 < len(rest):
            schema = inner[0]
    return True
