"""A finished run of a believable size, and a real browser to open its report in."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bdc.runs import Run

HOSTILE = (
    "</script><script>document.body.dataset.pwned='1'</script><!-- <img src=x"
    " onerror=\"document.body.dataset.pwned='1'\"> {{data}} & \u2028 \x1b[31m"
)
SIZES = (5, 60, 12, 33, 18, 41, 7, 25, 300)
HELD_OUT, CLUSTERS, LAYERS, EXPERTS, RANK = 12, 3, 28, 3, 8
FAMILIES = ("strings", "grids", "number theory", "intervals")
THOUGHTS = (
    "Sort the intervals by their end and keep each one that starts after the last kept end",
    "Count every character once, then compare the two counts instead of sorting both strings",
    "Walk the grid row by row and remember the best sum that reaches each cell",
    "Reduce the fraction with the greatest common divisor before the comparison",
    "Use a stack: push an index while the value grows and pop it when a smaller one comes",
)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
)


def interval(mean: float, spread: float = 0.05) -> dict[str, float]:
    return {"mean": mean, "low": mean - spread, "high": mean + 0.8 * spread}


def evaluation(label: str = "Single LoRA") -> dict[str, Any]:
    """An evaluation.json in which the base model has no loss and one label is the caller's."""
    rng = random.Random(5)
    ids = [f"held/{i}" for i in range(HELD_OUT)]
    names = {"base": "Zero-shot", "single": label, "nearest": "Nearest expert", "uniform": "Uniform", "bdc": "BDC"}
    systems = []
    for index, (name, text) in enumerate(names.items()):
        rates = [rng.choice([0.0, 0.25, 0.5, 1.0]) for _ in ids]
        rows = [{"id": i, "loss": 1.0, "pass_rate": r, "solved": r == 1} for i, r in zip(ids, rates, strict=True)]
        systems.append(
            {
                "name": name,
                "label": text,
                "loss": None if name == "base" else interval(1.2 - 0.05 * index),
                "pass_rate": interval(0.3 + 0.05 * index, 0.12),
                "ac": interval(0.2 + 0.05 * index, 0.14),
                "prompt_tokens": 1000,
                "completion_tokens": 500 + index,
                "seconds": 61.5 + index,
                "per_problem": rows,
            }
        )
    layers = [f"model.layers.{i // 7}.{('q', 'k', 'v', 'o', 'gate', 'up', 'down')[i % 7]}_proj" for i in range(LAYERS)]
    weights = [
        [[1 / EXPERTS + rng.gauss(0.06 * (at // RANK == c), 0.02 + layer / 900) for at in range(EXPERTS * RANK)]
         for layer in range(LAYERS)]
        for c in range(CLUSTERS - 1)
    ]  # fmt: skip
    return {
        "format": 1,
        "seed": 7,
        "problems": ids,
        "device": "cpu",
        "systems": systems,
        "differences": [
            {"system": "single", "metric": "loss", "mean": -0.15, "low": -0.2, "high": -0.1},
            {"system": "nearest", "metric": "loss", "mean": 0.05, "low": 0.01, "high": 0.1},
            {"system": "uniform", "metric": "loss", "mean": 0.02, "low": -0.01, "high": 0.06},
            *({"system": s, "metric": "ac", "mean": 0.1, "low": -0.01, "high": 0.2} for s in list(names)[:4]),
        ],
        # The last cluster has no held-out problem: its layers are empty, as the evaluate stage writes them.
        "rank_weights": {
            "layers": layers,
            "clusters": [*weights, [[] for _ in layers]],
            "experts": EXPERTS,
            "rank": RANK,
        },
    }


def nodes_of(problem: str, size: int, hostile: bool) -> list[dict[str, Any]]:
    rng = random.Random(size)
    rows = []
    for node in range(size):
        parent = -1 if node == 0 else rng.randrange(max(0, (node - 1) // 4), (node + 1) // 2 if node > 2 else 1)
        state = "root" if node == 0 else rng.choice(["open", "open", "open", "pruned", "refined"])
        reasons = {
            "pruned": "not better than its parent (0.25 against 0.50)",
            "refined": "refined from: Try all pairs (value 0.10)",
        }
        value = rng.random()
        rows.append(
            {
                "problem_id": problem,
                "node": node,
                "parent": parent,
                "depth": 0 if node == 0 else rows[parent]["depth"] + 1,
                "agent": "" if node == 0 else HOSTILE if hostile and node % 3 == 0 else ("smollm", "qwen")[node % 2],
                "thought": "" if node == 0 else HOSTILE if hostile else rng.choice(THOUGHTS),
                "prior": 0.5,
                "visits": size - node,
                "value": value,
                "q": min(1.0, value + 0.1),
                "state": state,
                "reason": HOSTILE if hostile else reasons.get(state, ""),
                "program": f"# {HOSTILE}" if hostile else f"def solve(values):\n    return sorted(values)[{node}]\n",
                "pass_rate": float("inf") if hostile and node == 3 else 0.5,
            }
        )
    return rows


def problem_rows() -> Iterator[dict[str, Any]]:
    for i in range(len(SIZES) + HELD_OUT):
        held = i - len(SIZES)
        statement = f"Problem {i}: read a list of numbers and print what is asked. {HOSTILE if i == 0 else ''}"
        yield {
            "id": f"train/{i}" if held < 0 else f"held/{held}",
            "position": i,
            "split": "test" if held >= 0 else "validation" if i % 4 == 3 else "train",
            "source": "tests",
            "json": json.dumps({"statement": statement, "family": HOSTILE if i == 0 else FAMILIES[i % 4]}),
        }


def fill(run: Run) -> None:
    """Rows and files as the stages leave them, with hostile text wherever a model or a data set can write."""
    run.insert("problems", problem_rows())
    for i, size in enumerate(SIZES):
        run.insert("nodes", nodes_of(f"train/{i}", size, hostile=i == 0))
        private = 1.0 if i % 3 else 0.5
        run.insert(
            "trees",
            [
                {
                    "problem_id": f"train/{i}",
                    "rollouts": 16,
                    "nodes": size,
                    "stop": "solved" if i % 3 else "rollouts",
                    "public_pass_rate": 1.0,
                    "private_pass_rate": private,
                    "best_node": size // 2,
                    "program": HOSTILE if i == 0 else "pass",
                    "json": json.dumps({"dropped_proposals": i, "agents_that_solved": ["qwen"] if i % 3 else []}),
                }
            ],
        )
    calls = (
        {"stage": "boost", "role": role, "agent": agent, "prompt_tokens": 100, "completion_tokens": 10 * at + 10}
        for at, role in enumerate(("propose", "program", "refine"))
        for agent in ("smollm", HOSTILE)
    )
    same = {"problem_id": "train/0", "request": "{}", "text": HOSTILE, "finish_reason": "stop"}
    same |= {"seconds": 2.0, "created": 1.7e9}
    run.insert("calls", [{"key": str(at), **call, **same} for at, call in enumerate(calls)])
    for at, stage in enumerate(("boost", "disentangle", "customize", "evaluate")):
        run.finish(stage, "digest", 312.5 / (at + 1), {})
    run.config_path.write_text(f'# {HOSTILE.replace(chr(27), "")}\n[boost]\nmodel = "smollm2"\n', encoding="utf-8")
    write_traces_and_clusters(run)
    run.evaluation_path.write_text(json.dumps(evaluation(label=HOSTILE)), encoding="utf-8")


def write_traces_and_clusters(run: Run) -> None:
    problems = [f"train/{i}" for i in range(len(SIZES)) for _ in range(2)]
    columns: dict[str, Any] = {"id": [f"t{i}" for i in range(len(problems))], "problem_id": problems}
    columns |= {
        "node": [1] * len(problems),
        "kind": ["thoughts", "program"] * len(SIZES),
        "split": ["train"] * len(problems),
    }
    columns |= {"agent": [HOSTILE] * len(problems), "value": [float("nan")] * len(problems)}
    pq.write_table(pa.table(columns), run.traces_path)
    rng = random.Random(3)
    ids = [f"train/{i}" for i in range(len(SIZES))]
    clusters = {
        "k": CLUSTERS,
        "assignment": {key: at % CLUSTERS for at, key in enumerate(ids)},
        "tsne": {key: [rng.gauss(30 * (at % 3), 9), rng.gauss(20 * (at % 2), 9)] for at, key in enumerate(ids)},
        "scores": {
            str(k): {"sse": 30 / k, "silhouette": 0.3 - abs(k - 3) / 20 if k < 6 else None} for k in range(2, 7)
        },
        "terms": [["sum", HOSTILE], ["interval", "overlap", "sorted"], []],
    }
    run.clusters_dir.mkdir()
    (run.clusters_dir / "clusters.json").write_text(json.dumps(clusters), encoding="utf-8")


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Run]:
    with Run(tmp_path / "run", create=True) as run:
        fill(run)
        yield run


class Browser:
    """Headless Chromium spoken to over a pipe (Chrome DevTools Protocol)."""

    def __init__(self, program: str, profile: Path) -> None:
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()

        def connect() -> None:
            # The protocol's file descriptors are 3 and 4; the copies keep either from landing on the other.
            reader, writer = os.dup(to_browser), os.dup(from_browser)
            os.dup2(reader, 3)
            os.dup2(writer, 4)

        command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            command, preexec_fn=connect, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer, self._count, self._session = b"", 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._session = None
        self.call("Browser.close")
        self._process.wait(timeout=20)
        os.close(self._out)
        os.close(self._in)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._in, 1 << 16)
            if not part:
                raise RuntimeError("the browser ended")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        self._note(found)
        return found

    def _note(self, message: dict[str, Any]) -> None:
        method, details = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(details["exceptionDetails"]))
        elif method == "Log.entryAdded" and details["entry"]["level"] == "error":
            self.errors.append(details["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])

    errors: list[str] = []  # noqa: RUF012  (replaced by open)
    requests: list[str] = []  # noqa: RUF012

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])

    def open(
        self, path: Path, *, width: int = 1280, height: int = 900, scheme: str = "light", fragment: str = ""
    ) -> None:
        """Load a file as a window of this width (CSS pixels) in this colour scheme shows it."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url="about:blank")
        self.errors, self.requests = [], []
        self.call("Page.navigate", url=path.resolve().as_uri() + fragment)
        loaded = "new Promise((done) => { const wait = () => location.protocol === 'file:' && document.readyState === 'complete'"
        self.evaluate(loaded + " ? requestAnimationFrame(() => done(true)) : setTimeout(wait, 10); wait(); })")

    def evaluate(self, script: str) -> Any:
        """The JSON value of an expression; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def count(self, selector: str) -> int:
        return int(self.evaluate(f"document.querySelectorAll({json.dumps(selector)}).length"))

    def text(self, selector: str) -> str:
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).textContent"))

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, text="\r" if key == "Enter" else "")

    def screenshot(self) -> bytes:
        """The whole page as PNG."""
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(picture["data"])


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no chromium on PATH; `apt-get update && apt-get install -y chromium` makes this test run")
    opened = Browser(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()
