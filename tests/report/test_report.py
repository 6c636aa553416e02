"""The report as a reader gets it: rows in a real run directory, rendered, opened in a real browser."""

from __future__ import annotations

import io
import json
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bdc.errors import InputError
from bdc.progress import Progress
from bdc.report import page, stage, terminal
from bdc.report.metrics import METRICS
from bdc.runs import Run

HOSTILE = "</script><script>document.body.dataset.pwned='1'</script><!-- <img src=x onerror=\"document.body.dataset.pwned='1'\"> {{data}} & \u2028 \x1b[31m"
SECTIONS = ("header", "results", "map", "trees", "weights", "costs", "reproduce")
PROBLEMS, NODES, CLUSTERS, LAYERS, EXPERTS, RANK = 12, 15, 3, 2, 3, 4
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no chromium on PATH; `apt-get update && apt-get install -y chromium` makes this test run"
)


def interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05}


def make_evaluation() -> dict[str, Any]:
    ids = [f"p{i}" for i in range(PROBLEMS)]
    systems = []
    for index, name in enumerate(("base", "single", "bdc")):
        per_problem = [{"id": i, "loss": 1.0, "pass_rate": 0.5, "solved": False} for i in ids]
        systems.append(
            {
                "name": name,
                "label": HOSTILE if name == "single" else name.upper(),
                "loss": None if name == "base" else interval(1.2 - 0.2 * index),
                "pass_rate": interval(0.3 + 0.1 * index),
                "ac": interval(0.2 + 0.1 * index),
                "prompt_tokens": 1000,
                "completion_tokens": 500 + index,
                "seconds": 61.5,
                "per_problem": per_problem,
            }
        )
    row = [(rank - 5) / 10 for rank in range(EXPERTS * RANK)]
    weights = [[[value * (c + 1) for value in row] for _ in range(LAYERS)] for c in range(CLUSTERS)]
    return {
        "format": 1,
        "seed": 7,
        "problems": ids,
        "device": "cpu",
        "systems": systems,
        "differences": [
            {"system": "single", "metric": "loss", "mean": -0.2, "low": -0.3, "high": -0.1},
            {"system": "base", "metric": "ac", "mean": 0.2, "low": -0.01, "high": 0.4},
        ],
        "rank_weights": {
            "layers": ["layer.0.q_proj", HOSTILE],
            "clusters": weights,
            "experts": EXPERTS,
            "rank": RANK,
        },
    }


def fill(run: Run) -> None:
    """Rows and files of a run that finished every stage, with hostile text wherever a model or a data set can write."""
    run.insert(
        "problems",
        (
            {
                "id": f"p{i}",
                "position": i,
                "split": "train" if i < 9 else "validation",
                "source": "test",
                "json": json.dumps({"statement": f"Problem {i} {HOSTILE}", "family": HOSTILE if i == 0 else "sums"}),
            }
            for i in range(PROBLEMS)
        ),
    )
    for problem in ("p0", "p1"):
        run.insert(
            "nodes",
            (
                {
                    "problem_id": problem,
                    "node": node,
                    "parent": (node - 1) // 2 if node else -1,
                    "depth": (node + 1).bit_length() - 1,
                    "agent": "" if node == 0 else ("alpha", HOSTILE)[node % 2],
                    "thought": HOSTILE,
                    "prior": 0.5,
                    "visits": NODES - node,
                    "value": 0.5,
                    "q": node / NODES,
                    "state": "expanded",
                    "reason": HOSTILE,
                    "program": f"print({node})  # {HOSTILE}",
                    "pass_rate": float("inf") if node == 3 else 0.5,
                }
                for node in range(NODES)
            ),
        )
        tree = {"rollouts": 14, "nodes": NODES, "stop": "budget", "public_pass_rate": 1.0, "best_node": 3}
        solved = {"private_pass_rate": 1.0 if problem == "p0" else 0.5, "program": HOSTILE, "json": "{}"}
        run.insert("trees", [{"problem_id": problem, **tree, **solved}])
    calls = ({"stage": "boost", "role": role, "agent": HOSTILE} for role in ("expand", "judge"))
    numbers = {"prompt_tokens": 100, "completion_tokens": 10, "seconds": 2.0, "created": 1.7e9}
    texts = {"problem_id": "p0", "request": "{}", "text": HOSTILE, "finish_reason": "stop"}
    run.insert("calls", [{"key": str(i), **call, **texts, **numbers} for i, call in enumerate(calls)])
    run.finish("boost", "digest", 12.5, {})
    run.config_path.write_text(f'# {HOSTILE.replace(chr(27), "")}\n[boost]\nmodel = "smollm2"\n', encoding="utf-8")
    columns = {"id": ["t0", "t1", "t2"], "problem_id": ["p0", "p0", "p9"], "split": ["train", "train", "validation"]}
    same = {"node": [0] * 3, "kind": ["program"] * 3, "agent": [HOSTILE] * 3, "value": [float("nan")] * 3}
    pq.write_table(pa.table(columns | same), run.traces_path)
    clusters = {
        "k": CLUSTERS,
        "assignment": {f"p{i}": i % CLUSTERS for i in range(PROBLEMS)},
        "tsne": {f"p{i}": [float(i % 5), float(i * i % 7)] for i in range(PROBLEMS)},
        "scores": {"2": {"sse": 3.0, "silhouette": 0.2}, "3": {"sse": 2.0, "silhouette": None}},
        "terms": [["sum", HOSTILE], ["list"], []],
    }
    run.clusters_dir.mkdir()
    (run.clusters_dir / "clusters.json").write_text(json.dumps(clusters), encoding="utf-8")
    run.evaluation_path.write_text(json.dumps(make_evaluation()), encoding="utf-8")


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Run]:
    with Run(tmp_path / "run", create=True) as run:
        fill(run)
        yield run


class Elements(HTMLParser):
    """Every start tag of a page, with its attributes, and the text outside scripts and styles."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._raw = False
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._raw = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._raw = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._raw else data

    def of_class(self, name: str) -> int:
        return sum(name in (attributes.get("class") or "").split() for _, attributes in self.tags)

    def section(self, name: str) -> dict[str, str | None]:
        return next(a for tag, a in self.tags if tag == "section" and a.get("id") == name)


def browse(path: Path, profile: Path, *flags: str) -> str:
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=3000", *flags, path.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    return done.stdout.decode()


def opened(run: Run, tmp_path: Path) -> Elements:
    stage.run(run, Progress("quiet"))
    return Elements(browse(run.report_path, tmp_path / "profile", "--dump-dom"))


def assert_all_drawn(dom: Elements) -> None:
    for name in SECTIONS:
        section = dom.section(name)
        assert section.get("data-error") is None, (name, section)
        assert section.get("data-drawn") == "1", name
    assert not re.search(r"\[object |\bNaN\b|undefined|Infinity", dom.text)
    assert not any("NaN" in (value or "") for tag, a in dom.tags if tag != "script" for value in a.values())


@needs_browser
def test_every_section_draws_all_of_its_data(full: Run, tmp_path: Path) -> None:
    dom = opened(full, tmp_path)
    assert_all_drawn(dom)
    assert dom.of_class("missing") == 0
    assert dom.of_class("system") == 3
    assert dom.of_class("whisker") == 8  # 3 systems x 3 metrics, less the base model's missing loss
    assert dom.of_class("point") == PROBLEMS
    assert dom.of_class("validation") == 3
    assert dom.of_class("node") == NODES
    assert dom.of_class("edge") == NODES - 1
    assert dom.of_class("best") >= 1
    assert dom.of_class("cell") == CLUSTERS * EXPERTS * RANK
    assert dom.of_class("call") == 2
    assert sum(tag == "option" for tag, _ in dom.tags) == 2 + LAYERS
    assert sum(tag == "dt" for tag, _ in dom.tags) == 12 + 6 + 8  # header, tree, chosen node
    assert "3 from 2 problems" in dom.text
    assert "smollm2" in dom.text and "12 (train 9, validation 3)" in dom.text


@needs_browser
def test_hostile_text_stays_text(full: Run, tmp_path: Path) -> None:
    dom = opened(full, tmp_path)
    assert not any("data-pwned" in attributes for _, attributes in dom.tags)
    assert sum(tag == "script" for tag, _ in dom.tags) == 2
    assert not any(tag == "img" for tag, _ in dom.tags)
    assert (
        dom.text.count("</script><script>document.body") >= 5
    )  # shown as it is: family, statement, thought, program...


@needs_browser
def test_pickers_and_nodes_answer(full: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver script added to the page's own chooses the last entry of each picker and then the last tree node."""
    driver = """
    window.addEventListener("error", (event) => { document.body.dataset.error = event.message; });
    for (const select of document.querySelectorAll("select")) {
      select.value = String(select.options.length - 1);
      select.dispatchEvent(new Event("change"));
    }
    const nodes = document.querySelectorAll("g.node");
    nodes[nodes.length - 1].dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" }));
    document.body.dataset.panel = document.querySelector(".panel").textContent;
    """
    original = page._static
    monkeypatch.setattr(page, "_static", lambda name: original(name) + (driver if name == "start.js" else ""))
    dom = opened(full, tmp_path)
    body = next(attributes for tag, attributes in dom.tags if tag == "body")
    assert body.get("data-error") is None
    assert f"print({NODES - 1})" in (body.get("data-panel") or "")
    assert dom.of_class("node") == NODES
    assert dom.of_class("cell") == CLUSTERS * EXPERTS * RANK


@needs_browser
def test_an_empty_run_says_which_command_is_next(tmp_path: Path) -> None:
    with Run(tmp_path / "empty", create=True) as run:
        dom = opened(run, tmp_path)
    assert_all_drawn(dom)
    assert dom.of_class("missing") == 6
    for name in ("boost", "disentangle", "evaluate"):
        assert f"bdc {name} {tmp_path / 'empty'}" in dom.text


def pixels(png: bytes) -> np.ndarray:
    """uint8 [height, width, channels] of an 8-bit RGB or RGBA image without interlacing (PNG, ISO/IEC 15948)."""
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", png[16:29])
    assert (depth, interlaced) == (8, 0) and kind in (2, 6)
    channels = 3 if kind == 2 else 4
    position, packed = 8, b""
    while position < len(png):
        (length,) = struct.unpack(">I", png[position : position + 4])
        if png[position + 4 : position + 8] == b"IDAT":
            packed += png[position + 8 : position + 8 + length]
        position += length + 12
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * channels)
    out = np.zeros((height + 1, width, channels), np.uint8)
    for y, row in enumerate(rows):
        line, above = row[1:].reshape(width, channels), out[y]
        if row[0] == 0:
            out[y + 1] = line
        elif row[0] == 1:
            out[y + 1] = np.cumsum(line, axis=0, dtype=np.uint64).astype(np.uint8)
        elif row[0] == 2:
            out[y + 1] = line + above
        else:
            for channel in range(channels):
                out[y + 1, :, channel] = unfilter(line[:, channel].tolist(), above[:, channel].tolist(), row[0] == 3)
    return out[1:]


def unfilter(line: list[int], above: list[int], average: bool) -> list[int]:
    """One channel of a row that was filtered by Average or Paeth."""
    out, left, corner = [], 0, 0
    for value, up in zip(line, above, strict=True):
        if average:
            guess = (left + up) // 2
        else:
            a, b, c = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
            guess = left if a <= b and a <= c else up if b <= c else corner
        left, corner = (value + guess) & 255, up
        out.append(left)
    return out


@needs_browser
@pytest.mark.parametrize("size", ["1100,2600", "390,2600"])
def test_the_picture_is_not_blank(full: Run, tmp_path: Path, size: str) -> None:
    stage.run(full, Progress("quiet"))
    picture = tmp_path / "report.png"
    browse(full.report_path, tmp_path / "profile", f"--screenshot={picture}", f"--window-size={size}")
    image = pixels(picture.read_bytes())
    flat = image[..., :3].astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    _, counts = np.unique(flat, return_counts=True)
    assert len(counts) > 50
    assert counts.max() < 0.97 * flat.size
    for band in np.array_split(flat, 4):  # text or drawing in every quarter of the picture
        assert len(np.unique(band)) > 10


def test_the_file_needs_nothing_else(full: Run) -> None:
    summary = stage.run(full, Progress("quiet"))
    content = full.report_path.read_text(encoding="utf-8")
    assert summary == {"path": str(full.report_path), "bytes": len(content.encode())}
    assert not re.search(r"(?:src|href)=|url\(|@import|fetch\(|innerHTML", content.replace("img src=x", ""))
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', content, re.DOTALL)
    assert block is not None
    assert "<" not in block[1]
    data = json.loads(block[1])
    assert data["trees"]["items"][0]["nodes"][3]["pass_rate"] is None  # an infinity is no JSON
    assert data["trees"]["items"][0]["nodes"][3]["thought"] == HOSTILE
    assert data["header"]["tokens"] == 2 * 110 + 3 * 1500 + 3


def test_a_broken_artefact_is_named(full: Run) -> None:
    full.evaluation_path.write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(str(full.evaluation_path))):
        stage.run(full, Progress("quiet"))
    assert not full.report_path.exists()


@pytest.mark.parametrize("width", [80, 160])
def test_terminal_table(width: int) -> None:
    from rich.console import Console

    out = io.StringIO()
    terminal.print_results(make_evaluation(), Console(file=out, width=width, force_terminal=False))
    text = " ".join(out.getvalue().split())
    assert "BDC" in text and "50.0 %" in text and "[45.0, 55.0]" in text and "0.800" in text
    assert "1,502" in text
    assert "\x1b" not in text
    for metric in METRICS:
        assert f"{metric.label}:" in text
    assert "better than" in text and "not separated from BASE" in text


def test_results_as_json() -> None:
    results = terminal.results_json(make_evaluation())
    assert results["best"] == {"loss": ["bdc"], "pass_rate": ["bdc"], "ac": ["bdc"]}
    assert results["systems"]["base"]["loss"] is None
    assert results["systems"]["bdc"]["tokens"] == 1502
    json.dumps(results, allow_nan=False)
