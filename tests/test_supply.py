"""What is shipped with the sources: bounds of versions, citation, bytes that can be built again."""

import io
import re
import runpy
import tarfile
import time
import tomllib
from pathlib import Path

import yaml
from commands import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_lowest_versions_are_the_lower_bounds() -> None:
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    bounds = [re.match(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", d) for d in PROJECT["dependencies"]]
    assert pinned == {bound[1]: bound[2] for bound in bounds if bound is not None}
    assert len(pinned) == len(PROJECT["dependencies"])


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    (paper,) = citation["references"]
    assert PROJECT["urls"]["Paper"] == paper["url"]


def test_an_sdist_has_the_same_bytes_whenever_and_by_whomever_it_is_built(tmp_path: Path) -> None:
    normalise = runpy.run_path(str(ROOT / "scripts" / "check_reproducible.py"))["normalise"]
    found = []
    for built, order in ((0, 1), (1, -1)):
        file = tmp_path / f"{built}.tar.gz"
        with tarfile.open(file, "w:gz") as tar:
            for name in ("a/b.py", "a/c.py")[::order]:
                member = tarfile.TarInfo(name)
                member.size, member.mtime, member.uid, member.uname = 4, time.time(), built, "me"
                tar.addfile(member, io.BytesIO(name[-4:].encode()))
        normalise(file, 1_700_000_000)
        found.append(file.read_bytes())
        with tarfile.open(file) as tar:
            assert [each.name for each in tar] == ["a/b.py", "a/c.py"]
            member = tar.extractfile("a/c.py")
            assert member is not None and member.read() == b"c.py"
    assert found[0] == found[1]
