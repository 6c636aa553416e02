"""`bdc judge`: programs from files of any source, judged on the tests of problems."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bdc.errors import InputError

if TYPE_CHECKING:
    from bdc.problems import Problem
    from bdc.sandbox import Limits, Verdict
    from bdc.submissions import Submission
    from bdc.testcase import Test

_LIMITS = {
    "cpu_seconds": (float, "CPU seconds per test; this decides timeouts"),
    "wall_seconds": (float, "wall seconds per test, for programs that wait"),
    "memory_mb": (int, "MiB per program"),
    "output_kb": (int, "KiB of output per test"),
}


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `bdc judge`; `--json` and `--quiet` are the caller's."""
    command.epilog = "Exit code: 0 every program passed every test, 1 some did not, 2 bad usage or input."
    command.add_argument("--problems", required=True, help="mini, humaneval, SET:PATH or a .jsonl file of problems")
    command.add_argument(
        "--programs",
        required=True,
        help="a .jsonl file (problem, id or task_id with program, solution or completion), a .py file, or a folder of "
        ".py files named after the problems",
    )
    command.add_argument("--tests", choices=("all", "public", "private"), default="all")
    command.add_argument("--level", default="auto", help="L3, L2, L1 or L0 (none); default: the strongest on offer")
    command.add_argument("--python", help="the interpreter that runs the programs (default: this one)")
    command.add_argument(
        "--allow-module", action="append", default=[], metavar="NAME", help="a module that programs may import as well"
    )
    command.add_argument("--workers", type=int, help="programs judged at once (default: the number of cores)")
    for name, (kind, text) in _LIMITS.items():
        command.add_argument("--" + name.replace("_", "-"), type=kind, help=text)
    command.add_argument("--feedback", action="store_true", help="what a model would be told about each failed program")


def run(args: argparse.Namespace) -> int:
    """Judge as the parsed options say and print the verdicts; 0 if every program passed every test, else 1.

    Raises:
        InputError: an input that cannot be judged; nothing has run then.
    """
    from bdc.problems import load
    from bdc.problems.records import place
    from bdc.progress import Progress
    from bdc.sandbox import Sandbox
    from bdc.submissions import read_submissions

    limits = _limits(args)
    submissions = read_submissions(place(args.programs, "--programs"), load(args.problems))
    jobs = [(submission.program, _tests(submission.problem, args.tests)) for submission in submissions]
    progress = Progress("quiet" if args.quiet else "auto")
    with Sandbox(args.workers, args.level, args.python, args.allow_module) as sandbox:
        verdicts = []
        with progress.task("judged", len(jobs)) as task:
            for verdict in sandbox.judge_iter(jobs, limits):
                verdicts.append(verdict)
                task.advance(note=f"{sum(v.passed for v in verdicts)} passed")
    report = _report(submissions, verdicts)
    print(json.dumps(report) if args.json else _render(report, verdicts if args.feedback else ()))
    return 0 if all(verdict.passed for verdict in verdicts) else 1


def _limits(args: argparse.Namespace) -> Limits:
    from bdc.sandbox import Limits

    given = {name: value for name in _LIMITS if (value := getattr(args, name)) is not None}
    if "cpu_seconds" in given and "wall_seconds" not in given:
        given["wall_seconds"] = max(Limits().wall_seconds, 5 * given["cpu_seconds"])
    return Limits(**given)


def _tests(problem: Problem, which: str) -> tuple[Test, ...]:
    public, private = problem.public_tests, problem.private_tests
    tests = {"public": public, "private": private, "all": public + private}[which]
    if not tests:
        kind = "" if which == "all" else f" {which}"
        raise InputError(f"problem {problem.id!r} has no{kind} tests; a program cannot be judged on it")
    return tests


def _report(submissions: Sequence[Submission], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return what `--json` prints."""
    rows = [
        {
            "problem": submission.problem.id,
            "name": submission.name,
            "passed": verdict.passed,
            "pass_rate": verdict.pass_rate,
            **verdict.to_json(),
        }
        for submission, verdict in zip(submissions, verdicts, strict=True)
    ]
    return {
        "level": verdicts[0].level,
        "programs": len(rows),
        "passed": sum(verdict.passed for verdict in verdicts),
        "pass_rate": sum(verdict.pass_rate for verdict in verdicts) / len(verdicts),
        "unverified": sum(not verdict.verified for verdict in verdicts),
        "verdicts": rows,
    }


def _render(report: dict[str, Any], explained: Sequence[Verdict]) -> str:
    from bdc.sandbox.feedback import escape

    lines = []
    for place, row in enumerate(report["verdicts"]):
        results = row["results"]
        passed = sum(result["status"] == "passed" for result in results)
        line = f"{'pass' if row['passed'] else 'FAIL'}  {row['problem']}  {row['name']}  {passed}/{len(results)}"
        if not row["verified"]:
            line += "  unverified"
        failed = next((result for result in results if result["status"] != "passed"), None)
        if failed:
            line += f"  {failed['status'].replace('_', ' ')}: {' '.join(failed['message'].split())[:160]}"
        lines.append(escape(line))
        if explained and failed:
            lines += ["    " + text for text in explained[place].feedback().splitlines()]
    unverified = f", {report['unverified']} unverified" if report["unverified"] else ""
    lines.append(
        f"{report['passed']} of {report['programs']} programs passed every test, "
        f"{report['pass_rate']:.1%} of the tests on average{unverified}; isolation level {report['level']}"
    )
    return "\n".join(lines)
