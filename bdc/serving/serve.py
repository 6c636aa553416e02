"""``bdc serve``: vLLM's own OpenAI server, with a solver's experts in its model."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bdc.errors import InputError, MissingExtraError


def add_options(command: argparse.ArgumentParser) -> None:
    """The options of the command; those that it does not know are vLLM's."""
    command.epilog = (
        "All further options, which come after the directory, are vLLM's: --dtype, --max-model-len, --tensor-parallel-size, "
        "--api-key and the rest, which `python -m vllm.entrypoints.openai.api_server --help` lists."
    )
    command.set_defaults(others=[])
    command.allow_abbrev = False  # of vLLM's
    command.add_argument("directory", help="a run directory, or a solver's folder")
    command.add_argument("--name", help="what clients call the solver (default: the run's name)")
    command.add_argument("--base-name", default="base", help="what clients call the base model (default: %(default)s)")
    command.add_argument("--base-model", help="where the base model is, if not where the solver says")
    command.add_argument("--encoder", help="where the encoder is, likewise")
    command.add_argument("--host", default="127.0.0.1", help="default: %(default)s, this machine alone")
    command.add_argument("--port", type=_port, default=8000, help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Become vLLM's server; returns only where that fails.

    Raises:
        InputError: the directory holds no solver, or its models are nowhere.
        MissingExtraError: vllm is not installed.
    """
    from bdc.customize.storage import SolverParts
    from bdc.llm.registry import resolve
    from bdc.serving.middleware import SETTINGS, Settings

    if importlib.util.find_spec("vllm") is None:
        raise MissingExtraError("bdc serve needs the vllm package: pip install 'bdc[serve]'.")
    folder, name = _solver(Path(args.directory))
    if (name := args.name or name) == args.base_name:
        raise InputError(f"the solver and the base model would both be called {name}; pass --name or --base-name")
    parts = SolverParts.load(folder)
    base = resolve(args.base_model or parts.base_model)
    encoder = args.encoder or parts.encoder
    reader = None if encoder is None else str(resolve(encoder, kind="encoder"))
    settings = Settings(str(folder), reader, args.base_name)
    server = serve_command(folder, base, [name, args.base_name], args.host, args.port, args.others)
    os.environ[SETTINGS] = json.dumps(asdict(settings))
    sys.stdout.flush()
    os.execv(sys.executable, server)  # signals and exit codes are vLLM's own


def serve_command(
    solver: Path, base: Path, names: Sequence[str], host: str, port: int, others: Sequence[str]
) -> list[str]:
    """The command line of vLLM's server for a solver."""
    # The module, not `vllm serve`, which looks for a distribution of that name: builds for CPUs have another.
    # -P: not the sources of this package or of vLLM, where it starts in a folder that has them.
    command = [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", str(base)]
    command += ["--served-model-name", *names, "--host", host, "--port", str(port)]
    command += ["--worker-cls", "bdc.serving.worker.Worker", "--middleware", "bdc.serving.Middleware"]
    return [*command, "--additional-config", json.dumps({"bdc_solver": str(solver), "bdc_cache_salts": True}), *others]


def _port(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"must be a number from 1 to 65535, got {text:.100}")
    return int(text)


def _solver(directory: Path) -> tuple[Path, str]:
    """The solver's folder in a directory, absolute, and the name of its run."""
    from bdc.customize.storage import CONFIG

    directory = directory.resolve()
    for folder in (directory / "solver", directory):
        if (folder / CONFIG).exists():
            run = folder.parent if folder.name == "solver" else folder
            return folder, run.name
    raise InputError(f"{directory} is no run directory with a solver, nor a solver's folder; bdc customize makes one")
