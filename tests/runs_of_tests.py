"""Jobs that tests run side by side; processes import them from here."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Toy:
    """A job that ends in one of several ways, or waits in a loop as a training does."""

    name: str
    root: Path
    ready: bool = True

    @property
    def log(self) -> Path:
        return self.root / "logs" / f"{self.name}.log"

    @property
    def finished(self) -> bool:
        return (self.root / f"{self.name}.done").is_file()

    def fraction(self) -> float:
        return 0.5


def play(job: Toy) -> bool:
    if job.name == "full":
        raise OSError(28, "No space left on device")
    if job.name == "killed":
        job.log.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    if job.name == "waits":
        (job.root / "pid").write_text(str(os.getpid()))
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            (job.root / "checkpoint").write_text("")
            raise
    return True
