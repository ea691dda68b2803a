"""Builds wheel and sdist twice and compares their bytes; leaves the first ones in a folder.

    SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) python scripts/check_reproducible.py dist

The build back end writes the wheel's times from SOURCE_DATE_EPOCH. Those of the sdist are set here,
with owners and order.
"""

import gzip
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def normalise(sdist: Path, epoch: int) -> None:
    """Rewrites a .tar.gz with members in order of their names, of one time and of no owner."""
    with tarfile.open(sdist) as old:
        members = [(each, old.extractfile(each)) for each in old.getmembers()]
        data = {each.name: b"" if file is None else file.read() for each, file in members}
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.PAX_FORMAT) as new:
        for each, _ in sorted(members, key=lambda pair: pair[0].name):
            each.mtime, each.uid, each.gid, each.uname, each.gname = epoch, 0, 0, "", ""
            each.mode, each.pax_headers = 0o755 if each.mode & 0o100 else 0o644, {}
            new.addfile(each, io.BytesIO(data[each.name]))
    with open(sdist, "wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=epoch) as packed:
        packed.write(tar.getvalue())


def build(folder: Path, epoch: int) -> dict[str, bytes]:
    """Builds both from a copy of the committed files; returns their bytes by name."""
    with tempfile.TemporaryDirectory() as copy:
        files = subprocess.run(
            ["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True
        )
        with tarfile.open(fileobj=io.BytesIO(files.stdout)) as tar:
            tar.extractall(copy, filter="data")
        command = [sys.executable, "-m", "build", "--outdir", str(folder), copy]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for sdist in folder.glob("*.tar.gz"):
        normalise(sdist, epoch)
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


if __name__ == "__main__":
    out, epoch = Path(sys.argv[1]), int(os.environ["SOURCE_DATE_EPOCH"])
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as again:
        first, second = build(out, epoch), build(Path(again), epoch)
    differing = [name for name in first if first[name] != second.get(name)]
    sys.exit(f"not reproducible: {', '.join(differing)}" if differing else 0)
