"""The core under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, and its loader under libFuzzer."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from bdc.search import PUCB, Forest, GumbelRoot, Rule, Thompson, Widening

SOURCES = Path(__file__).parents[2] / "csrc" / "search"


def build(compiler: str, check: str, flags: list[str], folder: Path) -> Path:
    program = folder / check
    core = [path for path in sorted(SOURCES.glob("*.cpp")) if path.name != "bench.cpp"]
    common = ["-std=c++20", "-O1", "-g", "-fno-omit-frame-pointer", "-ffp-contract=off", "-pthread"]
    subprocess.run(
        [compiler, *common, *flags, *map(str, core), str(SOURCES / "checks" / f"{check}.cpp"), "-o", str(program)],
        check=True,
        timeout=500,
    )
    return program


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler (apt install g++)")
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_stress_of_eight_threads(sanitizer: str, tmp_path: Path) -> None:
    flags = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    program = build("c++", "stress", flags, tmp_path)
    done = subprocess.run([program, "12", tmp_path], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == "ok\n"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler (apt install g++)")
@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_forms_agree_with_the_portable_one(isa: str, tmp_path: Path) -> None:
    program = build("c++", "forms", ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"], tmp_path)
    done = subprocess.run([program, isa, "200000"], capture_output=True, text=True, timeout=600)
    if done.stdout == "not here\n":
        pytest.skip(f"needs a processor with {isa}; elsewhere that form never runs")
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr[-4000:]


def seeds(folder: Path) -> None:
    """Small snapshots of all kinds: widened families, free blocks, tickets, pruned nodes, a dropped tree, arms."""
    rules: list[Rule] = [PUCB(), GumbelRoot(16, 4), Thompson(2)]
    for i, rule in enumerate(rules):
        forest = Forest(rule, seed=i, widening=Widening(1.5, 0.5))
        roots = forest.plant(3)
        for _ in range(6):
            selection = forest.select(roots)
            forest.backup(forest.expand(np.unique(selection.leaf), 2), [0.5, 0.25] * len(roots))
        forest.prune(forest.children(int(roots[0]))["id"][:1])
        forest.drop(roots[1:2])
        forest.select(roots[:1], 2)
        forest.save(folder / f"seed{i}")


def libfuzzer(folder: Path) -> str | None:
    """A clang++ that links an empty fuzz target."""
    (folder / "empty.cpp").write_text('extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }')
    for name in ["clang++", "clang++-14", "clang++-16", "clang++-19"]:
        command = [name, "-fsanitize=fuzzer,address,undefined", str(folder / "empty.cpp"), "-o", str(folder / "empty")]
        if shutil.which(name) and subprocess.run(command, capture_output=True).returncode == 0:
            return name
    return None


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_loader_under_libfuzzer(tmp_path: Path) -> None:
    clang = libfuzzer(tmp_path)
    if clang is None:
        pytest.skip(
            "needs clang++ with libFuzzer (apt install clang and libclang-rt-14-dev, or the one of its version)"
        )
    program = build(clang, "fuzz_load", ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"], tmp_path)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    seeds(corpus)
    limits = ["-max_total_time=60", "-max_len=32768", "-seed=1", "-rss_limit_mb=2048", "-timeout=20"]
    done = subprocess.run([program, *limits, corpus], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
