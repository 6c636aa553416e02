"""The ``bdc`` command. Exit codes: 0 done, 1 the work failed, 2 bad usage or input."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sqlite3
import sys
import warnings
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from bdc import __version__, judging
from bdc.artefacts import describe_os_error
from bdc.errors import BdcError, InputError, needs_extra
from bdc.machine import memory_is_full
from bdc.runs import STAGES, Run
from bdc.serving import serve

if TYPE_CHECKING:
    from bdc.config import Config


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    # Active waiting between small parallel regions makes shared cores crawl; it has to be set before OpenMP starts.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if not sys.warnoptions:  # libraries tell one another's developers what will change; a user can do nothing about it
        warnings.simplefilter("ignore", FutureWarning)
    _open_standard_streams()
    code = _run_command(argv)
    try:
        sys.stderr.flush()
    except OSError:  # nobody can be told, and the work's exit code stands
        _to_nowhere(sys.stderr)
    return code


def _run_command(argv: Sequence[str] | None) -> int:
    try:
        try:
            parser = _parser()
            args, others = parser.parse_known_args(argv)
            if others and not hasattr(args, "others"):
                parser.error(f"unrecognized arguments: {' '.join(others)}")
            args.others = others
            with needs_extra("run"):
                return int(args.run(args))
        finally:
            sys.stdout.flush()  # here a failure is one to report; when the interpreter exits it is too late
    except InputError as error:
        return _fail(error, 2)
    except BdcError as error:
        return _fail(error, 1)
    except BrokenPipeError:  # the reader of stdout went away, as `head` does
        _to_nowhere(sys.stdout)
        return 1
    except OSError as error:
        _to_nowhere(sys.stdout)
        # What was opened by name has it; the rest is standard output, or a call such as fork.
        where = error.filename or "standard output or the operating system"
        return _fail(f"{where}: {describe_os_error(error)}", 2)
    except sqlite3.DatabaseError as error:
        passing = getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        advice = "run the same command again" if passing else "restore it from a copy, or start a new run"
        return _fail(f"the run's store run.sqlite cannot be used: {error}; {advice}", 2)
    except (MemoryError, RuntimeError) as error:
        if not memory_is_full(error):
            raise
        return _fail(
            "the memory is full; give it more and run the same command again, a run goes on where it stopped", 1
        )
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on with a run where it stopped, and begins all else anew", 1)


def _open_standard_streams() -> None:
    """Point closed standard streams to nowhere: files opened later would get their descriptors, and output with them."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
            os.set_inheritable(descriptor, True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path may hold bytes that are no text


def _to_nowhere(stream: TextIO) -> None:
    """Let what is left in the buffer of a broken stream vanish."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _fail(message: object, code: int) -> int:
    text = " ".join(str(message).split())
    with contextlib.suppress(OSError):
        print(f"bdc: {''.join(char if char.isprintable() else '?' for char in text)}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bdc", description="Multi-LLM search distilled into a solver that adapts to each problem."
    )
    parser.add_argument("--version", action="version", version=f"bdc {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    def add_output(command: argparse.ArgumentParser) -> None:
        command.add_argument("--quiet", action="store_true", help="no progress on stderr")
        command.add_argument("--json", action="store_true", help="the result as JSON on stdout")

    def add_ray(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--ray",
            metavar="ADDRESS",
            help="judge programs on a Ray cluster: auto, HOST:6379, ray://HOST:10001 or local",
        )

    command = add("quickstart", _quickstart, "the whole pipeline on the problems and models that need no account")
    command.add_argument("--dir", default="runs/quickstart", help="run directory (default: %(default)s)")
    command.set_defaults(ray=None)
    add_output(command)
    command = add("run", _run, "the whole pipeline on your configuration")
    command.add_argument("config", help="a TOML file")
    command.add_argument("--dir", help="run directory (default: runs/ and the file's name)")
    add_ray(command)
    add_output(command)
    for stage in STAGES:
        command = add(stage, _stage, f"only the {stage} stage of a run directory")
        command.add_argument("directory", help="a run directory")
        command.set_defaults(stage=stage, ray=None)
        if stage in ("boost", "evaluate"):  # those that judge
            add_ray(command)
        add_output(command)
    command = add("serve", serve.run, "an OpenAI-compatible server: vLLM with the solver in it")
    serve.add_options(command)
    command = add("doctor", _doctor, "what this machine has, and what to install for the rest")
    command.add_argument("--json", action="store_true")
    command = add("judge", judging.run, "judge programs from files on the tests of problems")
    judging.add_options(command)
    add_output(command)
    command = add("sandbox", _sandbox, "`check`: the isolation level on offer, and a few escapes tried live")
    command.add_argument("action", choices=("check",))
    command.add_argument("--level", default="auto", help="L3, L2 or L1; default: the strongest on offer")
    command.add_argument("--json", action="store_true")
    command = add("models", _models, "list known models, or fetch one into the cache")
    command.add_argument("action", choices=("list", "fetch"))
    command.add_argument("name", nargs="?")
    command.add_argument("--accept-terms", action="store_true", help="accept the terms of a model that has some")
    command.add_argument("--json", action="store_true", help="the list, or the folder, as JSON on stdout")
    command = add("bench", _bench, "microbenchmarks: `bdc bench op --help`")
    command.add_argument("what", choices=("op", "search", "solver"))
    command.add_argument("options", nargs=argparse.REMAINDER, help="options of the benchmark")
    return parser


def _quickstart(args: argparse.Namespace) -> int:
    from bdc.config import parse_config

    text = (resources.files("bdc") / "presets" / "quickstart.toml").read_text(encoding="utf-8")
    return _pipeline(Path(args.dir), parse_config(text, "quickstart.toml"), text, args)


def _run(args: argparse.Namespace) -> int:
    from bdc.config import load_config

    config, text = load_config(args.config)
    directory = Path(args.dir) if args.dir else Path("runs") / Path(args.config).stem
    return _pipeline(directory, config, text, args)


def _pipeline(directory: Path, config: Config, text: str, args: argparse.Namespace) -> int:
    from bdc.pipeline import Pipeline
    from bdc.progress import Progress

    with Run(directory, create=True, config=text) as run:
        Pipeline(run, config, Progress("quiet" if args.quiet else "auto"), args.ray).all()
        _print_results(run, args)
    return 0


def _stage(args: argparse.Namespace) -> int:
    from bdc.config import load_config
    from bdc.pipeline import Pipeline
    from bdc.progress import Progress

    with Run(args.directory) as run:
        if not run.config_path.exists():
            raise InputError(f"{run.path} has no config.toml; bdc run CONFIG --dir {run.path} writes it")
        config, _ = load_config(run.config_path)
        summary = Pipeline(run, config, Progress("quiet" if args.quiet else "auto"), args.ray).stage(args.stage)
        if args.json:
            print(json.dumps(summary))
    return 0


def _print_results(run: Run, args: argparse.Namespace) -> None:
    from bdc.report.terminal import print_results, results_json

    evaluation = json.loads(run.evaluation_path.read_text(encoding="utf-8"))
    if args.json:
        print(json.dumps(results_json(evaluation) | {"report": str(run.report_path)}))
        return
    from rich.console import Console

    print_results(evaluation, Console())
    print(f"report: {run.report_path}")


def _doctor(args: argparse.Namespace) -> int:
    from bdc.doctor import examine, render

    findings = examine()
    print(json.dumps(findings) if args.json else render(findings))
    return 0


def _sandbox(args: argparse.Namespace) -> int:
    from bdc.sandbox.check import self_check

    report = self_check(args.level)
    print(json.dumps(report.to_json()) if args.json else report)
    return 0 if report.held else 1


def _models(args: argparse.Namespace) -> int:
    from bdc.llm import fetch, list_models

    if args.action == "list":
        if args.name:
            raise InputError(f"bdc models list takes no name, got {args.name}; `bdc models fetch` does")
        rows = list_models()
        if args.json:
            print(json.dumps(rows))
            return 0
        for row in rows:
            cached = "cached" if row["cached"] else "-"
            print(f"{row['name']:32} {row['kind']:8} {row['parameters']!s:>8} {row['licence']:12} {cached}")
        return 0
    if not args.name:
        raise InputError("bdc models fetch needs a name; `bdc models list` prints the known ones")
    folder = fetch(args.name, progress=lambda text: print(text, file=sys.stderr), accept_terms=args.accept_terms)
    print(json.dumps({"name": args.name, "folder": str(folder)}) if args.json else folder)
    return 0


def _bench(args: argparse.Namespace) -> int:
    if args.what == "search":
        from bdc.search.bench import main as bench
    elif args.what == "solver":
        from bdc.customize.bench import main as bench
    else:
        from bdc.ops.bench import main as bench
    return bench(args.options)


if __name__ == "__main__":
    sys.exit(main())
