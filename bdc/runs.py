"""The run directory: what each stage reads and writes (layout: docs/run-directory.md).

One SQLite file (WAL, one writer) holds problems, answered LLM calls, verdicts, trees and stage records; larger artefacts lie beside it as
files. Everything is written so that ``kill -9`` at any moment loses at most the work in flight.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from bdc.artefacts import atomic_write, describe_os_error, fingerprints, first_changed
from bdc.errors import InputError, StaleArtifactError

FORMAT_VERSION = 1
_KEYS_AT_ONCE = 500  # parameters of one query; SQLite allows 999 or more
STAGES = ("boost", "disentangle", "customize", "evaluate", "report")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS problems (
    id TEXT PRIMARY KEY, position INTEGER NOT NULL, split TEXT NOT NULL, source TEXT NOT NULL, json TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS calls (
    key TEXT PRIMARY KEY, stage TEXT NOT NULL, role TEXT NOT NULL, agent TEXT NOT NULL, problem_id TEXT,
    request TEXT NOT NULL, text TEXT NOT NULL, finish_reason TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, seconds REAL NOT NULL, created REAL NOT NULL);
CREATE TABLE IF NOT EXISTS verdicts (
    key TEXT PRIMARY KEY, problem_id TEXT NOT NULL, program TEXT NOT NULL, tests TEXT NOT NULL,
    pass_rate REAL NOT NULL, level TEXT NOT NULL, json TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS trees (
    problem_id TEXT PRIMARY KEY, rollouts INTEGER NOT NULL, nodes INTEGER NOT NULL, stop TEXT NOT NULL,
    public_pass_rate REAL NOT NULL, private_pass_rate REAL NOT NULL, best_node INTEGER, program TEXT, json TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS nodes (
    problem_id TEXT NOT NULL, node INTEGER NOT NULL, parent INTEGER NOT NULL, depth INTEGER NOT NULL, agent TEXT NOT NULL,
    thought TEXT NOT NULL, prior REAL NOT NULL, visits INTEGER NOT NULL, value REAL NOT NULL, q REAL NOT NULL,
    state TEXT NOT NULL, reason TEXT NOT NULL, program TEXT NOT NULL, pass_rate REAL NOT NULL,
    PRIMARY KEY (problem_id, node));
CREATE TABLE IF NOT EXISTS stages (
    name TEXT PRIMARY KEY, digest TEXT NOT NULL, format INTEGER NOT NULL, finished REAL NOT NULL, seconds REAL NOT NULL,
    summary TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS artefacts (
    stage TEXT NOT NULL, path TEXT NOT NULL, sha256 TEXT NOT NULL, PRIMARY KEY (stage, path));
"""
# What later stages compute from; the JSON records beside these hold times, which no result depends on.
_RESULTS = (".parquet", ".npy", ".safetensors", "evaluation.json")


def digest(*parts: Any) -> str:
    """SHA-256 (hex) of JSON-able values; equal values give equal digests in every process."""
    payload = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(payload.encode()).hexdigest()


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """A JSON-able record with the digest of itself, by which a change is noticed once it is stored."""
    return record | {"seal": digest(record)}


def seal_holds(record: dict[str, Any]) -> bool:
    """Whether a stored record is what was :func:`sealed`; one without a seal is taken as it is."""
    rest = {name: value for name, value in record.items() if name != "seal"}
    return "seal" not in record or record["seal"] == digest(rest)


def seed_of(*parts: Any) -> int:
    """A sampling seed in [0, 2^31) that is a function of JSON-able values."""
    return int(digest(*parts)[:8], 16) & 0x7FFFFFFF


class Run:
    """An open run directory.

    Args:
        path: the folder; made when ``create`` is true.
        create: make a new run when the folder holds none.
        config: the text of config.toml to write there.

    Raises:
        InputError: no run there, foreign files in its place (another config.toml, too), another process writes to it, or the disk is full.
        StaleArtifactError: the run was written by another format version.
    """

    def __init__(self, path: str | Path, *, create: bool = False, config: str | None = None) -> None:
        self.path = Path(path)
        store = self.path / "run.sqlite"
        if not create and not store.is_file():
            raise InputError(
                f"{self.path} is not a run directory (no run.sqlite in it); start one with `bdc run config.toml`"
            )
        self._check_place(store, config)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = self._acquire_lock()
            self.db = sqlite3.connect(store, timeout=30.0, isolation_level=None)
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute("PRAGMA synchronous=NORMAL")
            self._check_format(store)
            if config is not None:
                atomic_write(self.config_path, config)
        except OSError as error:
            raise InputError(f"{self.path} cannot be used as a run directory: {describe_os_error(error)}") from error
        except sqlite3.DatabaseError as error:
            raise InputError(f"{store} cannot be used: {error}") from error

    def _check_place(self, store: Path, config: str | None) -> None:
        """The folder can be named in the store, and nothing that is not the run's would be overwritten."""
        try:
            str(self.path).encode()
        except UnicodeEncodeError as error:
            encoding = sys.getfilesystemencoding()
            if encoding != "utf-8":  # libraries such as pyarrow refuse a path that Python could not decode
                raise InputError(f"{self.path} cannot be read as {encoding}; set PYTHONUTF8=1") from error
            raise InputError(f"{self.path} is no name in UTF-8; choose another directory") from error
        if store.exists():
            return
        places = [place for stage in STAGES for place in self.outputs(stage)]
        if config is not None and not self._holds(config):
            places.append(self.config_path)
        for place in places:
            if os.path.lexists(place):
                raise InputError(
                    f"{self.path} holds no run, but {place.name}, which a run would replace; choose another directory"
                )

    def _holds(self, config: str) -> bool:
        try:
            return self.config_path.read_text(encoding="utf-8") == config
        except (OSError, ValueError):
            return False

    def _acquire_lock(self) -> IO[str]:
        import fcntl

        lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise InputError(
                f"{self.path} is in use by another bdc process; wait for it or choose another directory"
            ) from error
        return lock

    def _check_format(self, store: Path) -> None:
        tables = {row[0] for row in self.db.execute("SELECT name FROM sqlite_master WHERE type='table'")}
        if tables and "meta" not in tables:
            raise InputError(f"{store} is not a bdc run store; choose another directory")
        if tables and (found := self.meta("format")) != str(FORMAT_VERSION):
            raise StaleArtifactError(
                f"{self.path} has run format {found} and this bdc reads format {FORMAT_VERSION}; use the matching bdc or start a new run"
            )
        with self.transaction():
            for statement in _SCHEMA.split(";"):
                self.db.execute(statement)
            self.db.execute("INSERT OR IGNORE INTO meta VALUES ('format', ?)", (str(FORMAT_VERSION),))

    def close(self) -> None:
        self.db.close()
        self._lock.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All statements inside are stored together or not at all."""
        try:
            self.db.execute("BEGIN IMMEDIATE")
            yield self.db
            self.db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            with contextlib.suppress(sqlite3.Error):
                self.db.execute("ROLLBACK")
            if "full" in str(error) or "disk I/O" in str(error):
                raise InputError(
                    f"{self.path / 'run.sqlite'} cannot be written: {error}; free some space and run the same command again"
                ) from error
            raise
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self.db.execute("ROLLBACK")
            raise

    # Places of the artefacts.

    @property
    def config_path(self) -> Path:
        return self.path / "config.toml"

    @property
    def traces_path(self) -> Path:
        return self.path / "traces.parquet"

    @property
    def preferences_path(self) -> Path:
        return self.path / "preferences.parquet"

    @property
    def clusters_dir(self) -> Path:
        return self.path / "clusters"

    @property
    def experts_dir(self) -> Path:
        return self.path / "experts"

    @property
    def solver_dir(self) -> Path:
        return self.path / "solver"

    @property
    def evaluation_path(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def report_path(self) -> Path:
        return self.path / "report.html"

    def outputs(self, stage: str) -> tuple[Path, ...]:
        """The files and folders that ``stage`` writes."""
        return {
            "boost": (self.traces_path, self.preferences_path),
            "disentangle": (self.clusters_dir, self.experts_dir),
            "customize": (self.solver_dir,),
            "evaluate": (self.evaluation_path,),
            "report": (self.report_path,),
        }[stage]

    # Stage records.

    def finished(self, stage: str, inputs: str) -> dict[str, Any] | None:
        """Summary of ``stage`` if it finished on the same inputs (a digest) and all that it wrote is still there, else None."""
        row = self.stage(stage)
        return row["summary"] if row and row["digest"] == inputs and self.damaged(stage) is None else None

    def stage(self, name: str) -> dict[str, Any] | None:
        """The record of a finished stage (digest, finished, seconds, summary), whatever its inputs were."""
        row = self.db.execute(
            "SELECT digest, finished, seconds, summary FROM stages WHERE name=? AND format=?",
            (name, FORMAT_VERSION),
        ).fetchone()
        if row is None:
            return None
        summary = self.decode("stages", name, row[3])
        if name == "report":
            summary["path"] = str(self.report_path)
        return {"digest": row[0], "finished": row[1], "seconds": row[2], "summary": summary}

    def damaged(self, stage: str) -> str | None:
        """The first file that ``stage`` wrote and that is missing or has changed since, or None."""
        return first_changed(self.path, self._artefacts(stage))

    def results(self, stage: str) -> dict[str, str]:
        """SHA-256 by path of the data that ``stage`` left for later stages, as it was when the stage finished."""
        return {path: sha256 for path, sha256 in self._artefacts(stage).items() if path.endswith(_RESULTS)}

    def _artefacts(self, stage: str) -> dict[str, str]:
        return dict(self.db.execute("SELECT path, sha256 FROM artefacts WHERE stage=? ORDER BY path", (stage,)))

    def require(self, stage: str, inputs: str, wanted_by: str) -> dict[str, Any]:
        """Summary of an upstream stage.

        Raises:
            StaleArtifactError: it has not finished, it finished on other inputs, or a file that it wrote is missing or changed.
        """
        row = self.stage(stage)
        if row is None:
            raise StaleArtifactError(
                f"{self.path}: {wanted_by} needs the results of {stage}; run `{self._command(stage)}` first"
            )
        if row["digest"] != inputs:
            raise StaleArtifactError(
                f"{self.path}: the results of {stage} were made from other settings or inputs; run `{self._command(stage)}` again"
            )
        if (name := self.damaged(stage)) is not None:
            raise StaleArtifactError(
                f"{self.path / name} is missing or was changed after {stage} wrote it; run `{self._command(stage)}` to make it again"
            )
        return dict(row["summary"])

    def _command(self, stage: str) -> str:
        return f"bdc {stage} {shlex.quote(str(self.path))}"

    def begin(self, stage: str) -> None:
        """Forget that ``stage`` has finished: from here on it changes tables and files, whether it ends or not."""
        with self.transaction() as db:
            db.execute("DELETE FROM stages WHERE name=?", (stage,))
            db.execute("DELETE FROM artefacts WHERE stage=?", (stage,))

    def finish(self, stage: str, inputs: str, seconds: float, summary: dict[str, Any]) -> None:
        """Record that ``stage`` has finished, and what it wrote."""
        written = fingerprints(self.path, self.outputs(stage))
        stored = {name: value for name, value in summary.items() if name != "path"}  # a run may be moved or copied
        with self.transaction() as db:
            db.execute("DELETE FROM artefacts WHERE stage=?", (stage,))
            db.executemany("INSERT INTO artefacts VALUES (?, ?, ?)", [(stage, *item) for item in written.items()])
            db.execute(
                "INSERT OR REPLACE INTO stages VALUES (?, ?, ?, ?, ?, ?)",
                (stage, inputs, FORMAT_VERSION, time.time(), seconds, json.dumps(stored)),
            )

    # Rows.

    def meta(self, key: str) -> str | None:
        """A value of the table ``meta``."""
        row = self.db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
        return str(row[0]) if row else None

    def rows(self, query: str, parameters: Sequence[Any] = ()) -> Iterator[dict[str, Any]]:
        """Rows of a SELECT as dictionaries."""
        cursor = self.db.execute(query, parameters)
        names = [column[0] for column in cursor.description]
        return (dict(zip(names, row, strict=True)) for row in cursor)

    def decode(self, table: str, key: str, text: Any) -> dict[str, Any]:
        """The JSON object in a row of the store.

        Raises:
            InputError: it is none.
        """
        try:
            record = json.loads(text)
        except (ValueError, TypeError) as error:
            raise self.damage(table, key, f"no JSON ({error})") from error
        if not isinstance(record, dict):
            raise self.damage(table, key, f"a JSON value of type {type(record).__name__}, not an object")
        return record

    def damage(self, table: str, key: str, reason: str) -> InputError:
        """The error to raise for a row of the store that cannot be what bdc wrote."""
        return InputError(
            f"{self.path / 'run.sqlite'}: the row {key!r:.100} of table {table} is damaged: {reason}; restore the file from a copy, "
            "or start a new run"
        )

    def find(self, table: str, keys: Sequence[str], columns: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The stored ones of the rows with these primary keys (column ``key``): ``{key: {column: value}}``."""
        found = {}
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            part = keys[start : start + _KEYS_AT_ONCE]
            query = f"SELECT key, {', '.join(columns)} FROM {table} WHERE key IN ({','.join('?' * len(part))})"
            for row in self.rows(query, part):
                found[row.pop("key")] = row
        return found

    def insert(self, table: str, rows: Iterable[dict[str, Any]]) -> None:
        """Insert rows in one transaction; a row whose primary key exists already is left as it was."""
        with self.transaction() as db:
            for row in rows:
                names, marks = ", ".join(row), ", ".join("?" * len(row))
                db.execute(f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})", tuple(row.values()))
