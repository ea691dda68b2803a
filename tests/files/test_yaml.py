"""One YAML reader: what scalars stand for, what is refused, and that writing is its inverse."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest

from vgs_rl.files.yaml_text import YamlError, dump_yaml, parse_yaml
from vgs_rl.training.config import ConfigError, read_yaml

SCALARS: list[tuple[str, Any]] = [
    ("2e-1", 0.2),
    ("1e-3", 0.001),
    (".5", 0.5),
    ("1.", 1.0),
    ("-4E1", -40.0),
    ("010", 10),
    ("1_000", 1000),
    (".inf", math.inf),
    ("-.INF", -math.inf),
    ("true", True),
    ("~", None),
    ("on", "on"),
    ("no", "no"),
    ("Yes", "Yes"),
    ("1:30", "1:30"),
    ("12:30:45", "12:30:45"),
    ("2024-01-01", "2024-01-01"),
    ("0x1f", "0x1f"),
    ("'2e-1'", "2e-1"),
    ("=", "="),
]


@pytest.mark.parametrize(("text", "value"), SCALARS, ids=[text for text, _ in SCALARS])
def test_a_scalar_is_a_number_or_the_text_that_was_written(text: str, value: Any) -> None:
    read = parse_yaml(f"key: {text}")["key"]
    assert read == value and type(read) is type(value)


REFUSED = [
    ("a: 1\nb: 2\na: 3\n", "line 3: 'a' is given twice, first in line 1"),
    ("a:\n  b: {c: 1, c: 2}\n", "line 2: 'c' is given twice"),
    ("a: !!python/object/apply:os.system [x]\n", "line 1: tags are not read"),
    ("a: !x 3\n", "tags are not read, got !x"),
    ("a: &x [1, *x]\n", r"line 1: \*x is not defined before it is used"),
    ("a: &x {b: 1}\nc:\n  <<: *x\n", "line 3: merge keys"),
    ("a: 1\n---\nb: 2\n", "line 2: only one document"),
    ("? [1]\n: 2\n", "keys must be names"),
    ("null: 2\n", "keys must be names, got None"),
    ("[" * 100_000, "nesting depth|nested deeper than 50"),
    ("- " * 5_000, "nested deeper than 50"),
    ("a: [1\n", "line 2"),
    ("a: " + "1" * 5_000, "whole number of 5000 digits"),
    ("a: \x00", "control characters"),
    ("x" * 2**20 + "x", "at most 1048576 characters"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_what_is_not_plain_yaml_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(YamlError, match=message) as caught:
        parse_yaml(text, "config some.yaml")
    assert str(caught.value).startswith("config some.yaml: ")


def test_expanding_aliases_are_refused_fast() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 20)]
    start = time.perf_counter()
    with pytest.raises(YamlError, match="expands to more than 100000 values"):
        parse_yaml("\n".join(lines))
    assert time.perf_counter() - start < 2


def test_an_alias_is_a_value_of_its_own() -> None:
    content = parse_yaml("a: &x {n: 1}\nb: *x\n")
    content["a"]["n"] = 2
    assert content == {"a": {"n": 2}, "b": {"n": 1}}


def test_what_is_written_reads_back_as_the_same_value() -> None:
    texts = ["2e-1", "on", "1:30", "007", "1_0", "~", "", "null", "x: y", "é\n", "<<", "0x1f", "-"]
    shared = [1, 2]
    value = {"texts": texts, "n": [1e-5, 2e6, 7, math.inf, True, None], "a": shared, "b": shared}
    assert parse_yaml(dump_yaml(value)) == value
    assert "&" not in dump_yaml({"a": shared, "b": shared})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be a mapping, got nothing"),
        (b"- 1\n", "must be a mapping, got list"),
        (b"\xff\xfe", "cannot be read"),
        (b"3: x\n", "keys must be names, got 3"),
    ],
)
def test_a_file_must_hold_a_mapping_in_utf8(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(file)
    assert "some.yaml" in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    file = tmp_path / "windows.yaml"
    file.write_bytes("env: Größe\n".encode("utf-8-sig"))
    assert read_yaml(file) == {"env": "Größe"}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml cannot be read"):
        read_yaml(tmp_path / "missing.yaml")
