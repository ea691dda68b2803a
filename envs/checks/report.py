"""What checks found: names and notes of those that passed, an error for one that did not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


class CheckError(AssertionError):
    """A check failed; the message says which, what was expected and what came."""


@dataclass(kw_only=True)
class CheckReport:
    """What was checked.

    Attributes:
        subject: name of the energy or environment.
        passed: names of the checks that passed, with what they measured.
        skipped: checks that did not apply, and why.
    """

    subject: str
    passed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.subject}: {len(self.passed)} checks passed"]
        lines += [f"  ok       {name}  {note}".rstrip() for name, note in self.passed.items()]
        lines += [f"  skipped  {name}  ({why})" for name, why in self.skipped.items()]
        return "\n".join(lines)

    @contextmanager
    def check(self, name: str) -> Iterator[list[str]]:
        """One named check: any exception inside becomes a `CheckError` that names it."""
        notes: list[str] = []
        try:
            yield notes
        except CheckError:
            raise
        except Exception as error:
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            raise CheckError(f"{self.subject}: {name}: {kind}{error}") from error
        self.passed[name] = "; ".join(notes)


def expect(condition: bool, message: str) -> None:
    """Raises an AssertionError with `message` unless the condition holds."""
    if not condition:
        raise AssertionError(message)
