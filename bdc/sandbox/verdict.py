"""What the judge says: one result per test, and what they rest on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bdc.errors import InputError

STATUSES = (
    "passed",
    "wrong_answer",
    "runtime_error",
    "timeout",
    "memory",
    "output_limit",
    "syntax_error",
)


@dataclass(frozen=True, slots=True)
class TestResult:
    """The result of one test.

    Attributes:
        status: one of `STATUSES`.
        message: one or two lines for a reader; empty for a passed test.
        expected, actual: short texts of both values where they are known, else empty.
        line: line of the program where an exception was raised, if any.
        seconds: CPU time of the program in this test.
        verified: False where the test had to run in the program's own process, which could have lied.
    """

    __test__ = False

    status: str
    message: str = ""
    expected: str = ""
    actual: str = ""
    line: int | None = None
    seconds: float = 0.0
    verified: bool = True

    @property
    def passed(self) -> bool:
        """Whether the test passed."""
        return self.status == "passed"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The results of a program on its tests, in the tests' order.

    Attributes:
        results: one per test.
        level: the isolation that the program ran under, "L3" (strongest) to "L0".
        verified: whether the oracle stood outside for every test.
        seconds: wall time of the whole judgement.
    """

    results: tuple[TestResult, ...]
    level: str
    verified: bool
    seconds: float

    @property
    def pass_rate(self) -> float:
        """Share of tests passed, 0 to 1."""
        return sum(result.passed for result in self.results) / len(self.results)

    @property
    def passed(self) -> bool:
        """Whether every test passed."""
        return all(result.passed for result in self.results)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; `from_json` is the inverse."""
        return {
            "results": [asdict(result) for result in self.results],
            "level": self.level,
            "verified": self.verified,
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Verdict:
        """Read what `to_json` wrote. Raises InputError."""
        try:
            results = tuple(TestResult(**result) for result in data["results"])
            return cls(results, data["level"], data["verified"], data["seconds"])
        except (KeyError, TypeError) as error:
            raise InputError(f"verdict {data!r:.200} cannot be read: {error!r}") from error

    def feedback(self, max_failures: int = 5) -> str:
        """Return a short account for a model: how many passed, then the first failures."""
        from bdc.sandbox.feedback import feedback

        return feedback(self.results, max_failures)
