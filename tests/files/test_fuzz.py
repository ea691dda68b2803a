"""Everything that is loaded, mutated: the right content, or one line of the package's own error."""

from __future__ import annotations

import functools
import hashlib
import importlib
import io
import json
import random
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TINY

from vgs_rl import VGS
from vgs_rl.envs.anomaly.tensor_files import load_tensors
from vgs_rl.envs.targets.references import load_array
from vgs_rl.evaluation.report import Metric, Report, format_comparison
from vgs_rl.experiments.config import config_of, parse_run, saved_config
from vgs_rl.experiments.pretrained import export_sampler, load_pretrained
from vgs_rl.experiments.run import build
from vgs_rl.files.checkpoint import load_checkpoint, save_checkpoint
from vgs_rl.files.unfinished import Unfinished
from vgs_rl.files.yaml_text import parse_mapping
from vgs_rl.samplers.base import Samples
from vgs_rl.training.folder import read_records
from vgs_rl.training.states import load_states

_LINE = 64 + len(b"vgs_rl sha256 \n")
EVIL = "evil_module_of_a_file"
GIANTS = [0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**40, 2**63 - 1, 2**64 - 1]
TEXTS = ["nan", "-1", "1e999", "9" * 400, "null", '"x"', "[]", "{}", "true", "1e9", "100000000"]
TEXTS += [f"{EVIL}:Energy", f"{EVIL}.Net", "os.system", "[" * 2_000, "*a", "&a [*a]", "\x00", "é"]


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        file: its name.
        content: a good one.
        load: reads it, and uses what was read a little.
        cost: how many mutations of the cheapest kind one of these is worth.
    """

    file: str
    content: bytes
    load: Callable[[Path], Any]
    cost: int = 1

    @property
    def signed(self) -> bool:
        """Whether it ends with its digest."""
        return self.content[-_LINE:].startswith(b"vgs_rl sha256 ")


def _kept(path: Path) -> Any:
    with Unfinished(path.parent, "fuzz").work("part") as work:
        return work.done


def _report(path: Path) -> Any:
    report = Report.load(path)
    assert str(report) and format_comparison({"it": report}) and report.ideals() is not None
    return report.as_json()


def _samples(path: Path) -> Any:
    samples = Samples.load(path)
    assert samples.x.ndim == 2 and samples.ess is not None
    return samples.x


@functools.cache
def _repeat() -> Callable[[Path], Any]:
    settings: Callable[[Path], Any] = importlib.import_module(
        "vgs_rl.experiments.commands.sample"
    )._settings
    return settings


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    """Good files of every kind, small ones."""
    root = tmp_path_factory.mktemp("good")
    (root / "run").mkdir()
    (root / "tiny.yaml").write_text(TINY.replace("{width: 16, depth: 2}", "{width: 8, depth: 1}"))
    config = config_of(parse_run([f"--config={root / 'tiny.yaml'}", "--device=cpu"]))
    _, agent = build(config)
    metrics = {"elbo": Metric(value=-0.5, ideal=0.0, n=9, details={"std": 0.1, "repeats": 4})}
    report = Report(
        target="FourGauss",
        agent="vgs",
        seed=0,
        n_samples=9,
        train_seconds=1.5,
        env_steps=8,
        energy_evaluations=7,
        metrics=metrics,
        details={"updates": 3, "notes": ["a note"]},
    )
    agent.save(root / "agent.pt")
    export_sampler(config.to_yaml(), agent, report, root / "sampler.pt")  # type: ignore[arg-type]
    state = {"a": torch.arange(12.0).view(3, 4), "n": [1, 2.5, "text", None], "t": (True, 2)}
    save_checkpoint(root / "checkpoint.pt", state)
    weights = torch.zeros(5)
    Samples(x=torch.ones(5, 2), log_weight=weights, energy_evaluations=5).save(root / "samples.pt")
    counters = {"env_steps": 1, "energy_evaluations": 2, "seconds": 0.5, "updates": 1}
    save_checkpoint(root / "states.pt", {"x": torch.ones(4, 2), "counters": counters})
    save_checkpoint(root / "pieces.pt", {"items": [{"x": torch.ones(3), "n": 1}]}, kind="pieces")
    torch.save({"features": torch.ones(6, 3), "labels": np.arange(6)}, root / "features.pt")
    packed = io.BytesIO()
    np.savez_compressed(packed, test=np.ones((50, 4), "f4"), provenance=np.array("text" * 20))
    record = json.dumps({**counters, "eval/elbo": -1.5, "train/loss": None})

    def read(name: str) -> bytes:
        return (root / name).read_bytes()

    with Unfinished(root, "fuzz").work("part") as work:
        piece = work._file(0).name

    def checkpoint(path: Path) -> Any:
        return load_checkpoint(path)["n"]

    return {
        "checkpoint": Kind("c.pt", read("checkpoint.pt"), checkpoint),
        "samples": Kind("s.pt", read("samples.pt"), _samples),
        "states": Kind("states/000000.pt", read("states.pt"), lambda p: load_states(p.parents[1])),
        "pieces": Kind(piece, read("pieces.pt"), _kept),
        "sampler": Kind("e.pt", read("sampler.pt"), lambda p: load_pretrained(p, "cpu")[2], 60),
        "agent": Kind("a.pt", read("agent.pt"), lambda p: VGS.load(p, device="cpu").seed, 60),
        "features": Kind("f.pt", read("features.pt"), lambda p: sorted(load_tensors(p))),
        "reference": Kind("r.npz", packed.getvalue(), lambda p: load_array(p, "test")),
        "report": Kind("report.json", report.as_json().encode(), _report),
        "records": Kind(
            "metrics.jsonl", f"{record}\n{record}\n".encode(), lambda p: read_records(p.parent)
        ),
        "config": Kind(
            "config.yaml", config.to_yaml().encode(), lambda p: saved_config(p.parent), 40
        ),
        "yaml": Kind(
            "some.yaml",
            TINY.encode(),
            lambda p: parse_mapping(p.read_text(errors="replace"), p.name),
        ),
        "repeat": Kind(
            "x.json", b'{"settings": {"n": 5, "effort": {"late": [true]}}}', lambda p: _repeat()(p)
        ),
    }


# --- mutations -----------------------------------------------------------------------------------


def mutated(content: bytes, other: bytes, random: random.Random) -> bytes:
    """One to three changes of bytes."""
    for _ in range(random.choice((1, 1, 2, 3))):
        at, size = random.randrange(len(content) + 1), random.choice((1, 2, 4, 8, 40, 400))
        change = random.randrange(9)
        if change == 0 and content:
            at = min(at, len(content) - 1)
            content = (
                content[:at] + bytes([content[at] ^ 1 << random.randrange(8)]) + content[at + 1 :]
            )
        elif change == 1:
            content = content[:at]
        elif change == 2:
            content = content[:at] + random.randbytes(size) + content[at:]
        elif change == 3:
            content = content[:at] + content[at + size :]
        elif change == 4:
            there = random.randrange(len(content) + 1)
            one, two = sorted((at, there))
            content = content[:one] + content[two : two + size] + content[one:]
        elif change == 5:
            giant = struct.pack(random.choice(("<Q", ">Q")), random.choice(GIANTS))
            giant = giant[: random.choice((2, 4, 8))]
            content = content[:at] + giant + content[at + len(giant) :]
        elif change == 6:
            start = random.randrange(len(other) + 1)
            content = content[:at] + other[start : start + size] + content[at:]
        else:
            content = text_changed(content, random)
    return content


def text_changed(content: bytes, random: random.Random) -> bytes:
    """Another value in place of a word or a number, as a text file has them."""
    text = content.decode("latin-1")
    words = [i for i in range(1, len(text)) if text[i].isalnum() and not text[i - 1].isalnum()]
    if not words:
        return content
    start = random.choice(words)
    end = start
    while end < len(text) and (text[end].isalnum() or text[end] in "._"):
        end += 1
    return (text[:start] + random.choice(TEXTS) + text[end:]).encode("latin-1", errors="replace")


def repacked(content: bytes, random: random.Random) -> bytes:
    """An archive whose entries are mutated, or compressed, or bombs, and fit together again."""
    packed = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(packed, "w") as out:
            names = archive.namelist()
            chosen = random.choice(names)
            for name in names:
                entry = archive.read(name)
                if name == chosen:
                    bomb = random.random() < 0.15
                    entry = bytes(2**24) if bomb else mutated(entry, content, random)
                how = zipfile.ZIP_DEFLATED if random.random() < 0.2 else zipfile.ZIP_STORED
                out.writestr(name, entry, how)
    except (zipfile.BadZipFile, IndexError):
        return content
    return packed.getvalue()


def mutation(kind: Kind, others: list[Kind], random: random.Random) -> bytes:
    """A mutated file; of a signed one most have the right digest of the wrong content."""
    body = kind.content[:-_LINE] if kind.signed else kind.content
    if body.startswith(b"PK") and random.random() < 0.5:
        body = repacked(body, random)
    else:
        body = mutated(body, random.choice(others).content, random)
    if not kind.signed:
        return body
    digest = b"vgs_rl sha256 %s\n" % hashlib.sha256(body).hexdigest().encode()
    return body + (digest if random.random() < 0.8 else kind.content[-_LINE:])


# --- the law -------------------------------------------------------------------------------------


def memory() -> float:
    """MiB that this process has ever held."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module that files name and nobody may import."""
    (tmp_path / f"{EVIL}.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    assert EVIL not in sys.modules


def fuzz(kinds: dict[str, Kind], budget: int, root: Path, seed: int) -> list[str]:
    """Loads mutated files, fewer of the kinds that cost more; returns what is wrong."""
    wrong = []
    for name, kind in kinds.items():
        path = root / name / kind.file
        path.parent.mkdir(parents=True)
        path.write_bytes(kind.content)
        kind.load(path)
        numbers = random.Random(f"{name} {seed}")
        for number in range(max(3, budget // len(kinds) // max(1, kind.cost // 4))):
            content = mutation(kind, list(kinds.values()), numbers)
            path.write_bytes(content)
            began, error = time.process_time(), None
            try:
                kind.load(path)
            except (ValueError, FileNotFoundError) as found:
                if "\n" in str(found).strip():
                    error = f"lines: {found}"
            except Exception as found:
                error = f"{type(found).__name__}: {found}"
            if (seconds := time.process_time() - began) > 3.0:
                error = f"{seconds:.1f} s; {error}"
            if error is not None:
                wrong.append(f"{name} {number}: {error[:300]}")
                if len(wrong) < 20:
                    (root / f"wrong-{name}-{number}").write_bytes(content)
    return wrong


@pytest.mark.usefixtures("trap")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("budget", [700, pytest.param(20_000, marks=pytest.mark.slow)])
def test_a_mutated_file_is_read_as_it_was_or_refused_in_one_line(
    budget: int, kinds: dict[str, Kind], tmp_path: Path
) -> None:
    before = memory()
    wrong = fuzz(kinds, budget, tmp_path, seed=1)
    assert not wrong, "\n".join(wrong)
    assert memory() - before < 300
