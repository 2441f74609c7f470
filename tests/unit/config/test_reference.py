"""docs/reference/recipe.md says what the schemas say."""

from pathlib import Path

from warren.config.reference import reference


def test_the_page_is_current(repository: Path) -> None:
    page = repository / "docs" / "reference" / "recipe.md"
    assert page.read_text() == reference(), "run: python -m warren.config.reference"


def test_it_says_what_comments_and_docstrings_say() -> None:
    page = reference()
    assert "| `alpha` | integer | required | the adapters' sum is scaled by alpha / rank |" in page
    assert "| `shuffled_images` | true or false | `false` | The control: every question is asked" in page
    assert "AfterValidator" not in page
