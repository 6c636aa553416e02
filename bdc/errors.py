"""Typed exceptions. Every message is one sentence that names the thing and what to do about it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator


class BdcError(Exception):
    """Base of every error that bdc raises on purpose; the command line exits with 1."""


class InputError(BdcError, ValueError):
    """Bad usage or bad input (a file, a field, an argument); the command line exits with 2."""


class StaleArtifactError(InputError):
    """An artefact of a run directory was made from other inputs, or by another format version."""


class ModelNotFoundError(InputError):
    """No source (local folder, hub cache, hub, registry packages) has the named model."""


class MissingExtraError(InputError):
    """A feature needs an optional dependency; the message names the extra to install."""


class LLMError(BdcError):
    """An LLM call failed for good after its retries."""


@contextlib.contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Inside, or in a function that this decorates, a missing package is an error that names the extra of bdc.

    Raises:
        MissingExtraError: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = error.name or str(error)
        quoted = re.search(r"'([\w.-]+)", name)  # transformers puts a sentence in the place of the name
        missing = quoted[1] if quoted else name
        raise MissingExtraError(f"{missing} is not installed; run pip install 'bdc[{extra}]'") from error
