"""The report as a reader gets it: a real run directory, rendered, opened in a real browser."""

from __future__ import annotations

import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bdc.errors import InputError
from bdc.progress import Progress
from bdc.report import stage
from bdc.report.collect import collect
from bdc.report.trees import collect_trees
from bdc.runs import Run

SECTIONS = ("header", "results", "map", "trees", "weights", "costs", "reproduce")


def written(run: Run) -> Path:
    stage.run(run, Progress("quiet"), ["smollm2", "minilm"])
    return run.report_path


def rows(run: Run, query: str) -> int:
    return int(run.db.execute(query).fetchone()[0])


def assert_all_drawn(browser: Any) -> None:
    assert browser.errors == []
    assert browser.evaluate("document.getElementById('errors').hidden")
    for name in SECTIONS:
        state = browser.evaluate(f"({{...document.getElementById('{name}').dataset}})")
        assert state.get("drawn") == "1" and "error" not in state, (name, state)
    shown = browser.evaluate("document.body.innerText")
    assert not re.search(r"\[object |\bNaN\b|undefined|Infinity", shown)
    markup = browser.evaluate("document.querySelector('main').outerHTML")
    assert "NaN" not in markup and "Infinity" not in markup


def test_every_section_draws_all_of_its_data(full: Run, browser: Any) -> None:
    browser.open(written(full))
    assert_all_drawn(browser)
    assert browser.count("[data-missing]") == 0
    evaluation = json.loads(full.evaluation_path.read_text())
    weights, systems = evaluation["rank_weights"], evaluation["systems"]
    measured = sum(system[metric] is not None for system in systems for metric in ("loss", "pass_rate", "ac"))
    assert browser.count("#results tr.system") == len(systems)
    assert browser.count("#results .whisker") == measured + len(evaluation["differences"])
    assert browser.count("#results td.share") == len(systems) * len(evaluation["problems"])
    assert browser.count("#map circle.point") == rows(full, "SELECT count(*) FROM trees")
    assert browser.count("#map .knot") == 5 + 4  # K = 2..6; one K has no silhouette
    assert browser.count("#trees select option") == rows(full, "SELECT count(*) FROM trees")
    filled = [layers for layers in weights["clusters"] if layers[0]]
    assert browser.count("#weights rect.cell") == len(filled) * weights["experts"] * weights["rank"]
    assert browser.count("#weights option") == 1 + len(weights["layers"])
    assert browser.count("#weights .layer") == len(weights["layers"])
    assert browser.count("#costs tr.call") == rows(
        full, "SELECT count(*) FROM (SELECT 1 FROM calls GROUP BY role, agent)"
    )
    assert "18" in browser.text("#header .stats") and "smollm2" in browser.text("#header dl")
    assert "dropped proposals" in browser.text("#trees .facts")
    assert full.config_path.read_text() == browser.text("#reproduce .copyable:last-child pre")


@pytest.mark.parametrize("problem", ["train/0", "train/1", "train/8"])
def test_a_link_opens_the_whole_tree_of_its_problem(full: Run, browser: Any, problem: str) -> None:
    browser.open(written(full), fragment=f"#tree={problem.replace('/', '%2F')}")
    assert browser.errors == []
    count = rows(full, f"SELECT count(*) FROM nodes WHERE problem_id = '{problem}'")
    for mode in ("cards", "lines", "dots"):
        browser.evaluate(f"document.querySelector('#trees input[value={mode}]').click()")
        assert browser.count("#trees svg.tree [role=treeitem]") == count
        assert browser.count("#trees svg.tree .edge") == count - 1
        places = "[...document.querySelectorAll('#trees [role=treeitem] .mark')].map((m) => {const b = m.getBoundingClientRect(); return [Math.round(b.x), Math.round(b.y)].join()})"
        assert len(set(browser.evaluate(places))) == count  # no node hides another
    for state in ("pruned", "refined"):
        wanted = rows(full, f"SELECT count(*) FROM nodes WHERE problem_id = '{problem}' AND state = '{state}'")
        assert browser.count(f"#trees [role=treeitem].{state}") == wanted


def test_texts_stay_inside_their_cards(full: Run, browser: Any) -> None:
    browser.open(written(full), fragment="#tree=train%2F7")
    over = """[...document.querySelectorAll('#trees .node.cards')].filter((node) => {
        const right = node.querySelector('.box').getBoundingClientRect().right;
        return [...node.querySelectorAll('text')].some((text) => text.getBoundingClientRect().right > right);
    }).length"""
    assert browser.count("#trees .node.cards") == 25
    assert browser.evaluate(over) == 0


def test_hostile_text_stays_text(full: Run, browser: Any) -> None:
    browser.open(written(full), fragment="#tree=train%2F0")
    assert browser.evaluate("document.body.dataset.pwned") is None
    assert browser.count("script") == 2 and browser.count("img") == 0
    assert browser.requests == [full.report_path.resolve().as_uri() + "#tree=train%2F0"] or browser.requests == [
        full.report_path.resolve().as_uri()
    ]
    for place in ("#results", "#map", "#trees .thought", "#trees .copyable pre", "#costs", "#reproduce pre"):
        assert "</script><script>" in browser.evaluate(
            f"[...document.querySelectorAll('{place}')].map((e) => e.textContent).join()"
        ), place


def test_filter_and_stepper_choose_trees(full: Run, browser: Any) -> None:
    browser.open(written(full))
    unsolved = rows(full, "SELECT count(*) FROM trees WHERE private_pass_rate < 1")
    browser.evaluate("document.querySelector('#trees input[value=unsolved]').click()")
    assert browser.count("#trees select option") == unsolved
    assert browser.text("#trees .badge") == "not solved"
    assert browser.text("#trees .position") == f"1 of {unsolved}"
    before = browser.text("#trees .tree-view")
    browser.evaluate("document.querySelector('#trees [aria-label=\"Next problem\"]').click()")
    assert browser.text("#trees .position") == f"2 of {unsolved}"
    assert browser.text("#trees .tree-view") != before


def test_keyboard_reaches_nodes_and_points(full: Run, browser: Any) -> None:
    browser.open(written(full), fragment="#tree=train%2F3")
    assert browser.count("#trees [role=treeitem][tabindex='0']") == 1
    browser.evaluate("document.querySelector('#trees [role=treeitem][tabindex=\"0\"]').focus()")
    for _ in range(6):
        browser.press("ArrowLeft")
    assert browser.text("#trees .panel h3") == "Problem train/3"
    browser.press("ArrowRight")
    first = browser.text("#trees .panel h3")
    assert first.startswith("Node ")
    browser.press("ArrowDown")
    assert browser.text("#trees .panel h3") not in (first, "Problem train/3")
    assert browser.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"
    browser.evaluate("document.querySelector('#map .plot svg').focus()")
    browser.press("ArrowRight")
    assert browser.text("#map .panel h3").startswith("train/")
    assert browser.evaluate("document.querySelector('#map .panel a').hash").startswith("#tree=train%2F")


def test_layer_and_cluster_choices(full: Run, browser: Any) -> None:
    browser.open(written(full))
    cells = "[...document.querySelectorAll('#weights .cell title')].map((t) => t.textContent).join()"
    averaged = browser.evaluate(cells)
    choose = "(() => {const s = document.querySelector('#weights select'); s.value = '3'; s.dispatchEvent(new Event('change'))})()"
    browser.evaluate(choose)
    weights = json.loads(full.evaluation_path.read_text())["rank_weights"]
    assert browser.evaluate(cells) != averaged
    assert f"cluster 0, expert 0, rank 1: {weights['clusters'][0][2][0]:.4f}" in browser.evaluate(cells)
    browser.evaluate("document.querySelector('#map .legend button').click()")
    assert browser.count("#map .point.faint") == 6


@pytest.mark.parametrize("width", [1280, 768, 390])
def test_no_width_scrolls_sideways(full: Run, browser: Any, width: int) -> None:
    browser.open(written(full), width=width)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert_all_drawn(browser)


def test_controls_and_pictures_have_names(full: Run, browser: Any) -> None:
    browser.open(written(full))
    nameless = """[...document.querySelectorAll('svg, select, button, input, [role=region]')].filter((e) => !(
        e.closest('[aria-hidden=true]') || e.getAttribute('aria-label') || e.textContent.trim() || (e.labels && e.labels.length)
        || e.closest('button, [role=img]') !== e && e.closest('[role=img]')
    )).map((e) => e.outerHTML.slice(0, 80))"""
    assert browser.evaluate(nameless) == []
    assert browser.evaluate("[...document.querySelectorAll('table')].every((t) => t.caption && t.caption.textContent)")
    ids = browser.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_contrast(full: Run, browser: Any, scheme: str) -> None:
    """Text against its page colour reaches 4.5 : 1 (WCAG 2.2, 1.4.3)."""
    browser.open(written(full), scheme=scheme)
    names = ("page", "raised", "text", "soft", "accent", "good", "bad")
    read = (
        "['"
        + "','".join(names)
        + "'].map((n) => getComputedStyle(document.documentElement).getPropertyValue('--' + n))"
    )
    colours = dict(zip(names, browser.evaluate(read), strict=True))

    def luminance(colour: str) -> float:
        parts = [int(colour.strip()[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for ground in ("page", "raised"):
        for text in names[2:]:
            dark, light = sorted((luminance(colours[ground]), luminance(colours[text])))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ground, text)


def test_an_empty_run_says_which_command_is_next(tmp_path: Path, browser: Any) -> None:
    with Run(tmp_path / "empty run", create=True) as run:
        browser.open(written(run))
    assert_all_drawn(browser)
    assert browser.count("[data-missing]") == 6
    for name in ("boost", "disentangle", "evaluate"):
        assert f"bdc {name} '{tmp_path / 'empty run'}'" in browser.evaluate("document.body.innerText")


def test_a_run_that_stopped_after_boost(full: Run, browser: Any) -> None:
    full.evaluation_path.unlink()
    (full.clusters_dir / "clusters.json").unlink()
    browser.open(written(full))
    assert_all_drawn(browser)
    missing = browser.evaluate("[...document.querySelectorAll('[data-missing]')].map((e) => e.id)")
    assert missing == ["results", "map", "weights"]


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
    lines = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * channels)
    out = np.zeros((height + 1, width, channels), np.uint8)
    for y, row in enumerate(lines):
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


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_picture_is_not_blank(full: Run, browser: Any, width: int, scheme: str) -> None:
    browser.open(written(full), width=width, scheme=scheme)
    image = pixels(browser.screenshot())
    flat = image[..., :3].astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    assert image.shape[1] == width
    colours, counts = np.unique(flat, return_counts=True)
    assert len(counts) > 200
    assert counts.max() < 0.97 * flat.size
    page = int(colours[counts.argmax()])
    assert page == (0xFBFAF8 if scheme == "light" else 0x15171A)
    for band in np.array_split(flat, 12):  # text or drawing in every twelfth of the page
        assert len(np.unique(band)) > 20


def test_the_file_needs_nothing_else(full: Run) -> None:
    summary = stage.run(full, Progress("quiet"))
    content = full.report_path.read_text(encoding="utf-8")
    assert summary == {"path": str(full.report_path), "bytes": len(content.encode())}
    assert not re.search(r"\bsrc=|url\(|@import|fetch\(|innerHTML|document\.write", content.replace("img src=x", ""))
    assert set(re.findall(r'href="(.)', content)) == {"#"}
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', content, re.DOTALL)
    assert block is not None
    assert "<" not in block[1]
    data = json.loads(block[1])
    nodes = data["trees"]["items"][0]["nodes"]
    assert nodes[3]["pass_rate"] is None  # an infinity is no JSON
    assert "</script>" in nodes[3]["thought"]
    assert data["header"]["tokens"] == 2 * (110 + 120 + 130) + 5 * 1500 + (0 + 1 + 2 + 3 + 4)


def test_the_evaluated_solver_is_no_agent(full: Run) -> None:
    searched = set(collect(full)["header"]["agents"])
    full.db.execute(
        "INSERT INTO calls SELECT 'answer', 'evaluate', 'bdc', 'solver', problem_id, request, text, finish_reason, 1, 1, 1.0, created"
        " FROM calls LIMIT 1"
    )
    assert "smollm" in searched and set(collect(full)["header"]["agents"]) == searched


def test_the_same_run_gives_the_same_file(full: Run) -> None:
    first = written(full).read_bytes()
    assert written(full).read_bytes() == first


def test_a_very_large_run_says_what_it_leaves_out(full: Run) -> None:
    trees = collect_trees(full, text_budget=20_000)
    assert trees is not None
    assert 0 < len(trees["items"]) < 9
    assert trees["left_out"] == 9 - len(trees["items"])


@pytest.mark.parametrize("name", ["evaluation.json", "clusters/clusters.json", "traces.parquet"])
def test_a_broken_artefact_is_named(full: Run, name: str) -> None:
    (full.path / name).write_bytes(b"{")
    with pytest.raises(InputError, match=re.escape(str(full.path / name))):
        stage.run(full, Progress("quiet"))
    assert not full.report_path.exists()
