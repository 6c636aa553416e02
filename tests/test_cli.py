"""The command line's standard streams when they are full, closed or gone, and places that cannot be used."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from bdc.cli import main


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in which BDC stands for the command line."""
    return subprocess.run(
        ["sh", "-c", command.replace("BDC", f"{sys.executable} -m bdc.cli")],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["models list", "models list --json"])
def test_output_on_a_full_disk_is_one_line(command: str, unbuffered: str) -> None:
    done = shell(f"BDC {command} > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 2
    assert done.stderr.startswith("bdc: standard output") and done.stderr.count("\n") == 1
    assert "the disk is full" in done.stderr


def test_closed_streams_are_no_streams(tmp_path: Path) -> None:
    assert (lambda done: (done.returncode, done.stderr))(shell("BDC models list >&-")) == (0, "")
    # Nothing that is meant for stderr may end up in stdout, nor in a file that got its descriptor.
    done = shell(f"BDC run {tmp_path}/none.toml 2>&-")
    assert (done.returncode, done.stdout) == (2, "")
    assert shell("BDC models list <&- >&- 2>&-").returncode == 0


def test_errors_that_nobody_can_read_still_have_their_exit_code(tmp_path: Path) -> None:
    assert shell(f"BDC run {tmp_path}/none.toml 2> /dev/full").returncode == 2


def test_progress_that_nobody_can_read_does_not_stop_the_work() -> None:
    work = "from bdc.progress import Progress; p = Progress(); p.say('a'); p.say('b'); print('done')"
    command = f'{sys.executable} -c "{work}" 2> /dev/full'
    assert shell(command).stdout == "done\n"  # the interpreter's own exit code says that stderr could not be flushed


def test_a_terminal_that_goes_away_does_not_stop_the_work(tmp_path: Path) -> None:
    work = f"""
import os, time
from bdc.progress import Progress
with Progress().task("work", total=9) as task:
    os.write(1, b"ready")  # rich has put itself in the place of sys.stdout
    os.read(0, 1)
    for _ in range(9):
        task.advance()
        time.sleep(0.1)
open({str(tmp_path / "done")!r}, "w").close()
"""
    terminal, end = pty.openpty()
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": end, "start_new_session": True}
    with subprocess.Popen([sys.executable, "-c", work], **options) as process:  # type: ignore[call-overload]
        os.close(end)
        assert process.stdout.read(5) == b"ready"
        os.close(terminal)
        process.communicate(b"\n", timeout=60)
    assert (tmp_path / "done").exists()


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    done = shell("(BDC models list; echo $? >&2) | true")
    assert done.stderr.split() in (["0"], ["1"])  # the reader may be gone before or after the writing


@pytest.mark.parametrize(
    ("home", "words"), [("/dev/null", "/dev/null cannot be written"), ("~nobody-of-this-name/x", "set BDC_HOME")]
)
def test_a_home_that_is_none_is_named(
    home: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BDC_HOME", home)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["models", "fetch", "gemma-3-270m", "--accept-terms"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bdc: ") and error.count("\n") == 1 and words in error


@pytest.mark.parametrize("below", ["", "/run"])
def test_a_run_directory_that_is_a_file_is_named(
    below: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    place = f"{tmp_path}/file{below}"
    for command in (["quickstart", "--dir", place], ["boost", place], ["report", place]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"bdc: {place}") and error.count("\n") == 1
    assert (tmp_path / "file").read_text(encoding="utf-8") == "kept"


def test_no_message_can_drive_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", f"{tmp_path}/\x1b[2Jnone\n.toml"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.strip().isprintable()
