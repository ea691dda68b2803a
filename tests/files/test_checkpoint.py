"""Files of checkpoints: what was written comes back, or one line says why not."""

import io
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vgs_rl.files.checkpoint import load_checkpoint, save_checkpoint
from vgs_rl.samplers.base import Samples

STATE = {
    "weights": {"first": torch.randn(7, 5), "count": torch.tensor(3)},
    "numbers": [1, 2.5, "x", None, True, -(2**40)],
    "pair": (0.1, float("inf")),
    3: {"bits": torch.tensor([True, False])},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("written") / "c.pt"
    save_checkpoint(path, STATE)
    return path.read_bytes()


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and all(same(one[k], other[k]) for k in one | other)
    return type(one) is type(other) and one == other


def test_every_kind_of_value_comes_back(written: bytes, tmp_path: Path) -> None:
    (tmp_path / "c.pt").write_bytes(written)
    assert same(load_checkpoint(tmp_path / "c.pt"), STATE)


def test_a_flipped_byte_anywhere_is_found(written: bytes, tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    for at in [*range(0, len(written), 37), *range(len(written) - 90, len(written))]:
        path.write_bytes(written[:at] + bytes([written[at] ^ 0x40]) + written[at + 1 :])
        with pytest.raises(ValueError, match="damaged|digest|truncated|not one of"):
            load_checkpoint(path)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_mutated_file_is_an_error_or_the_same(
    written: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(written)))
    end = data.draw(st.integers(start, min(len(written), start + 200)))
    put = data.draw(st.binary(max_size=60))
    path = tmp_path / "c.pt"
    path.write_bytes(written[:start] + put + written[end:])
    try:
        state = load_checkpoint(path)
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert same(state, STATE)


def test_every_other_file_is_called_what_it_is(written: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(ValueError, match="is a folder, not a file; load_run and evaluate.py take"):
        load_checkpoint(tmp_path)
    for content, message in [
        (b"", "is empty"),
        (b"env: GMM9\nmdp: {num_steps: 3}\n" * 30, "is a text file, not one that vgs_rl wrote"),
        (bytes(range(256)) * 4, "truncated or not one of vgs_rl's"),
        (written[: len(written) // 2], "truncated or damaged"),
        (written[:-1], "no digest of its content"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_checkpoint(path)
    torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="was not written by vgs_rl"):
        load_checkpoint(path)
    torch.save({"format": "vgs_rl checkpoint", "version": 1, "state": {}}, path)
    with pytest.raises(ValueError, match="has version 1, this package reads 2: train or export"):
        load_checkpoint(path)


def test_a_file_of_another_kind_says_who_reads_it(tmp_path: Path) -> None:
    run, drawn = tmp_path / "best.pt", tmp_path / "samples.pt"
    save_checkpoint(run, STATE)
    Samples(x=torch.zeros(2, 1), log_weight=None, energy_evaluations=0).save(drawn)
    with pytest.raises(ValueError, match="best.pt holds no sampler, but a checkpoint of a train"):
        load_checkpoint(run, kind="sampler")
    with pytest.raises(ValueError, match="samples.pt holds no sampler, but drawn samples; Samples"):
        load_checkpoint(drawn, kind="sampler")


def test_what_is_no_plain_value_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"cannot hold state\.a\[1\], a \w*Path"):
        save_checkpoint(tmp_path / "c.pt", {"a": [1, tmp_path]})
    assert not list(tmp_path.iterdir())


def signed(path: Path, body: bytes) -> None:
    """A file whose digest is right, whatever is in it."""
    import hashlib

    path.write_bytes(body + b"vgs_rl sha256 %s\n" % hashlib.sha256(body).hexdigest().encode())


def saved(state: object) -> bytes:
    file = io.BytesIO()
    content = {"format": "vgs_rl checkpoint", "version": 2, "kind": "checkpoint", "state": state}
    torch.save(content, file)
    return file.getvalue()


def test_nothing_takes_more_memory_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    signed(path, saved({"a": torch.zeros(1).expand(10**9)}))
    with pytest.raises(ValueError, match="tensors are larger than the file"):
        load_checkpoint(path)
    packed = io.BytesIO()
    source = io.BytesIO(saved({"a": torch.zeros(10**5)}))
    with (
        zipfile.ZipFile(source) as archive,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as smaller,
    ):
        for name in archive.namelist():
            smaller.writestr(name, archive.read(name))
    signed(path, packed.getvalue())
    with pytest.raises(ValueError, match="is damaged"):
        load_checkpoint(path)
    signed(path, saved({"a": bytearray(3)}))
    with pytest.raises(ValueError, match="more than tensors, numbers and strings: "):
        load_checkpoint(path)


def test_views_are_saved_without_what_they_are_views_of(tmp_path: Path) -> None:
    rows = torch.randn(10_000, 8)
    save_checkpoint(tmp_path / "c.pt", {"a": rows[:3], "b": rows[:3], "c": rows[0].expand(4, 8)})
    assert (tmp_path / "c.pt").stat().st_size < 8_000
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert torch.equal(loaded["a"], rows[:3]) and torch.equal(loaded["b"], rows[:3])
    assert torch.equal(loaded["c"], rows[0].expand(4, 8))
