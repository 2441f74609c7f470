"""Recipes are JSON in YAML's spelling: everything else is one line that says what and where."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warren.config import Recipe, load_config
from warren.config.strict_yaml import parse
from warren.errors import ConfigError

FOLDERS = [Path(__file__).parents[3] / "jobs" / "recipes"]


def load(*overrides: str) -> Recipe:
    return load_config(Recipe, "demo", FOLDERS, overrides)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2024-01-01", "2024-01-01"),
        ("2024-01-01T10:00:00Z", "2024-01-01T10:00:00Z"),
        ("12:30:45", "12:30:45"),
        ("=", "="),
        ("1e-3", 0.001),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-7", -7),
        ("010", 10),
        ("64_000_000", 64_000_000),
        ("1.2.3", "1.2.3"),
        ("~", None),
        ("", None),
        ("false", False),
        ("[1, a, {b: null}]", [1, "a", {"b": None}]),
        ("{<<: {a: 1}, a: 2}", {"a": 2}),
    ],
)
def test_values_are_what_they_look_like(text: str, value: object) -> None:
    assert parse(text, "x") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("COCO: 2017: val", "not valid YAML: mapping values are not allowed here (line 1, column 11); text with ':'"),
        ("[1, 2", "not valid YAML"),
        ("{a: 1, a: 2}", "the key 'a' is there twice (line 1, column 8)"),
        ("{a: {b: 1, b: 1}}", "the key 'b' is there twice"),
        ("!!timestamp 2024-01-01", "a date: allowed are text"),
        ("{a: !!binary aGk=}", "a bytes at a: allowed are text"),
        ("{a: {b: !!set {x, y}}}", "a set at a.b"),
        ("!!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("!mine x", "could not determine a constructor"),
        ("{1: x}", "the key 1 is not text: put it in quotes"),
        ("{a: {yes: x}}", "the key True at a is not text"),
        ("{[a]: x}", "found unhashable key"),
        ("{a: .nan}", "nan at a is not a finite number"),
        ("-.inf", "-inf is not a finite number"),
        ("1e999", "inf is not a finite number"),
        ("9223372036854775808", "does not fit into 64 bits"),
        ("9" * 5000, "Exceeds the limit"),
        ("!!int abc", "invalid literal"),
        ('"\\ud800"', "half a surrogate pair"),
        ("&a [*a]", "an anchor holds itself"),
        ("[" * 5000, "nested too deeply"),
        ("*nowhere", "undefined alias"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("\x00", "special characters are not allowed"),
    ],
)
def test_everything_else_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "here")
    assert str(caught.value).startswith("here: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_aliases_of_aliases_have_an_end() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(ConfigError, match="more than 100,000 values"):
        parse("\n".join(lines), "here")


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=60))
def test_no_override_ends_in_anything_but_a_recipe_or_one_line(text: str) -> None:
    for override in (text, f"ingest.origin={text}", f"pretrain={text}", f"{text}=1"):
        try:
            load(override)
        except ConfigError as error:
            message = str(error)
            assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"extends: [demo]\n", 'extends: expected the name or the file of one to extend, not ["demo"]'),
        (b"extends: {demo: 1}\n", "extends: expected the name"),
        (b"extends: 5\n", "extends: expected the name"),
        (b"extends: ''\n", "extends: expected the name"),
        (b"extends: nowhere.yaml\n", "nowhere.yaml: no such file"),
        (b"name: a\nname: b\n", "the key 'name' is there twice (line 2, column 1)"),
        (b"", "a mapping of keys is expected, not an empty file"),
        (b"- a\n", "a mapping of keys is expected, not a list"),
        (b"\xff\xfe\x00", "own.yaml: "),
        (b"name: \xff\n", "own.yaml: "),
    ],
)
def test_files_too(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "own.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(Recipe, str(tmp_path / "own.yaml"), FOLDERS)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_and_a_path_with_a_zero_byte_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").mkdir()
    for name in (str(tmp_path / "own.yaml"), "a\0b.yaml", "a\0b"):
        with pytest.raises(ConfigError):
            load_config(Recipe, name, FOLDERS)


def test_byte_order_marks_and_utf_16_are_read(tmp_path: Path) -> None:
    text = "extends: demo\nname: own\n"
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "own.yaml").write_bytes(text.encode(encoding))
        assert load_config(Recipe, str(tmp_path / "own.yaml"), FOLDERS).name == "own"


def test_a_number_for_a_text_says_how_to_write_it() -> None:
    with pytest.raises(ConfigError, match=r"ingest\.version: .*\(given: 2024\); text that looks like .* in quotes"):
        load("ingest.version=2024")
    assert load('ingest.version="2024"').require("ingest").version == "2024"
    assert load("ingest.version=2024-01-01").require("ingest").version == "2024-01-01"


@pytest.mark.parametrize("override", ["", "=", "=1", ".a=1", "a.=1", "a..b=1"])
def test_overrides_without_a_key_are_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=r"expected key=value"):
        load(override)
