from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dollar.data import shapes
from dollar.evaluation.report.curves import curve, thin, ticks
from dollar.evaluation.report.page import SampleRow, write_report
from dollar.evaluation.report.table import DASH, Figure, System, cell, format_number, format_table

SINGLE = {"meta", "link", "img", "br", "path", "polyline"}


class Page(HTMLParser):
    """Collects what a test asks about, and fails on tags that don't close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in SINGLE:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def figures(alignment: float, **more: object) -> dict[str, object]:
    return {
        "alignment": alignment,
        "attributes": {"shape": 0.875, "colour": 0.75},
        "reward": 21.25,
        "frechet": {"distance": 12.5, "floor": 3.0, "excess": 9.5},
        "sharpness": 0.0625,
        "saturation": 0.375,
        "contrast": 0.25,
        "flow": 0.1875,
        "vendi": {"mean": 8.25, "sd": 0.125},
        "spread": {"position": 10.5, "phase": 1.5, "speed": 0.125},
        "seconds": {"text": 0.25, "diffusion": 14.0, "decode": 0.5},
        "clips": 64,
        **more,
    }


def some_metrics() -> dict[str, object]:
    difference = {
        "alignment": {"difference": 0.02, "low": 0.01, "high": 0.03},
        "reward": {"difference": -1.5, "low": -2.0, "high": -1.0},
        "frechet": {"difference": 0.5, "low": -0.5, "high": 1.5},
        "attributes": {"colour": {"difference": 0.125, "low": None, "high": None}},
    }
    student = figures(0.93, speedup=10.4, speedup_ceiling=12.5, difference=difference)
    return {
        "teacher": figures(0.91),
        "real": {"alignment": 1.0, "flow": 0.2085},
        "student": {"1": figures(0.87), "4": student, "2": figures(0.9)},
        "untrained": {"4": {"alignment": 0.31, "vendi": None, "reward": float("nan"), "frechet": 40.5}},
        "lrm": {"correlation": 0.83, "pairwise": 0.78, "mse": None},
    }


def some_samples() -> list[SampleRow]:
    clip = shapes.render(shapes.ALL_ATTRIBUTES[0], 0)
    return [
        SampleRow('a <script>alert(1)</script> & "quotes"', 3, {"teacher": clip, "student 4": clip[:, ::2]}),
        SampleRow("second", 4, {"teacher": np.zeros((5, 300, 600, 3), np.uint8), "student 1": clip[:1]}),
    ]


def rows(table: str) -> dict[str, list[str]]:
    split = [re.split(r"\s{2,}", line.strip()) for line in table.splitlines()]
    return {row[0]: row[1:] for row in split}


def test_table_has_every_figure_in_its_column() -> None:
    table = format_table(some_metrics())
    lines = table.splitlines()
    heads = ["teacher 50", "real clips", "student 4", "student 2", "student 1", "untrained 4"]
    assert re.split(r"\s{2,}", lines[0].strip()) == heads
    found = rows(table)
    assert found["Alignment ↑"] == ["0.910", "1", "0.930", "0.900", "0.870", "0.310"]

    def row(each: str, untrained: str = DASH, real: str = DASH) -> list[str]:
        return [each, real, *[each] * 3, untrained]

    assert found["colour ↑"] == row("0.750")
    assert found["Fréchet distance ↓"] == row("12.5", "40.5")
    assert found["above its floor ↓"] == row("9.50")
    assert found["Reward ↑"] == row("21.2")
    assert found["Saturation"] == row("0.375") and found["Contrast"] == row("0.250")
    assert found["Flow, pixels a frame"] == row("0.188", real="0.208")
    assert found["Vendi score ↑"] == row("8.25 ± 0.125")
    assert found["Seconds ↓"] == row("14.8") and found["diffusion ↓"] == row("14")
    assert found["Speedup ↑"] == [DASH, DASH, "10.4×", DASH, DASH, DASH]
    assert lines[2].split("  minus teacher")[1].strip() == "[0.010, 0.030]"
    assert max(map(len, lines)) <= 110
    column = lines[0].index("student 4") + len("student 4")
    assert lines[1][:column].endswith("0.930") and lines[2][:column].endswith("[0.010, 0.030]")


def test_many_systems_go_into_blocks_beside_the_teacher() -> None:
    metrics = some_metrics()
    metrics["student"] = {str(n): figures(0.5) for n in range(1, 12)}
    blocks = format_table(metrics).split("\n\n")
    heads = [re.split(r"\s{2,}", block.splitlines()[0].strip()) for block in blocks]
    assert len(blocks) > 1 and all(head[0] == "teacher 50" for head in heads)
    names = ["real clips", *(f"student {n}" for n in range(11, 0, -1)), "untrained 4"]
    assert [name for head in heads for name in head[1:]] == names
    assert max(len(line) for block in blocks for line in block.splitlines()) <= 110


@pytest.mark.parametrize("metrics", [{}, {"teacher": None, "student": {"4": None}, "lrm": None}])
def test_nothing_known_is_dashes(tmp_path: Path, metrics: dict) -> None:
    assert rows(format_table(metrics))["Alignment ↑"] == [DASH] * (1 + len(metrics.get("student", {})))
    write_report(tmp_path / "report.html", metrics, {}, [])
    assert DASH in Page((tmp_path / "report.html").read_text("utf-8")).text


def test_tone_follows_direction_and_interval() -> None:
    def tone(better: int, low: float, high: float) -> str:
        difference = {"a": {"difference": (low + high) / 2, "low": low, "high": high}}
        return cell(System("student 4", {"a": 1.0, "difference": difference}), Figure("a", ("a",), better)).tone

    assert [tone(1, 0.1, 0.3), tone(1, -0.3, -0.1), tone(1, -0.1, 0.3)] == ["good", "bad", ""]
    assert [tone(-1, 0.1, 0.3), tone(-1, -0.3, -0.1), tone(0, 0.1, 0.3)] == ["bad", "good", ""]
    student = System("student 4", some_metrics()["student"]["4"])
    assert cell(student, Figure("colour", ("attributes", "colour"), 1, "", True))[1:] == ("+0.125", "", "")
    assert cell(student, Figure("f", ("frechet", "distance"), -1)).interval == "[-0.500, 1.50]"
    assert cell(student, Figure("f", ("frechet", "excess"), -1, "", True)).difference == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (64, "64"),
        (1234.5, "1,234"),
        (12.34, "12.3"),
        (-1.234, "-1.23"),
        (0.01234, "0.012"),
        (1e-5, "1.0e-05"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert format_number(value) == text


def test_the_page_stands_alone_and_moves(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.html"
    scalars = {"loss/vsd": (np.arange(3), np.array([3.0, 2.0, 1.0])), "loss/a<b": ([0], [1.0]), "alone": ([], [])}
    write_report(path, some_metrics(), scalars, some_samples(), "T & <i>", ["note <b>"], fps=8)
    page = Page(path.read_text("utf-8"))
    assert not {"script", "link", "iframe", "b>"} & {tag for tag, _ in page.tags}
    links = [v for _, attributes in page.tags for k, v in attributes.items() if k in ("src", "href", "srcset", "data")]
    assert len(links) == 4 and all(v.startswith("data:image/gif;base64,") for v in links)
    assert not re.search(r"https?:|url\(|@import", path.read_text("utf-8"))
    gifs = [Image.open(io.BytesIO(base64.b64decode(link.split(",")[1]))) for link in links]
    assert [(g.size, g.n_frames) for g in gifs[:2]] == [((64, 64), 17), ((64, 32), 17)]
    assert gifs[2].size == (256, 128)  # made smaller for the page
    assert 'a <script>alert(1)</script> & "quotes"' in page.text and "note <b>" in page.text
    assert page.text.count("student 4") >= 3 and "seed 3" in page.text
    assert len([t for t, a in page.tags if a.get("class") == "gap"]) == 2  # two columns are missing in a row each
    assert "0.830" in page.text and "correlation" in page.text
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_curves_are_grouped_by_prefix_with_their_last_value(tmp_path: Path) -> None:
    steps = np.arange(4)
    names = ["time/cycle", "loss/vsd", "flat", "loss/fake"]
    scalars = {name: (steps, np.full(4, k + 0.25)) for k, name in enumerate(names)}
    write_report(tmp_path / "r.html", {}, scalars, [])
    text = (tmp_path / "r.html").read_text("utf-8")
    assert re.findall(r"<h3>(.*?)</h3>", text) == ["loss", "time", "other"]
    last = re.findall(r"<figcaption>(\w+)<b>([\d.]+)</b>", text)
    assert last == [("fake", "3.25"), ("vsd", "1.25"), ("cycle", "0.250"), ("flat", "2.25")]
    assert text.count(">step</text>") == 4


def points(svg: str) -> list[np.ndarray]:
    """The [N, 2] points of each line of a curve, in SVG units (y down)."""
    lines = re.findall(r'<polyline points="([^"]+)"', svg)
    return [np.array([[float(x) for x in p.split(",")] for p in line.split()]) for line in lines]


def test_a_curve_is_drawn_to_scale() -> None:
    svg = curve("x", np.array([20, 10, 30]), np.array([1.0, 0.0, 2.0]))  # sorted by step
    ((a, b, c),) = points(svg)
    assert a[0] == 0 and b[0] == pytest.approx((a[0] + c[0]) / 2, abs=0.1) and a[1] > b[1] > c[1]
    assert b[1] == pytest.approx((a[1] + c[1]) / 2, abs=0.1)
    labels = {float(t): float(y) for y, t in re.findall(r'<text x=-6 y="([\d.]+)">([-\d.]+)</text>', svg)}
    assert labels[1.0] == pytest.approx(b[1] + 3.5, abs=0.11) and labels[0.0] == pytest.approx(a[1] + 3.5, abs=0.11)
    assert ">10</text>" in svg and ">30</text>" in svg and "<b>2</b>" in svg


def test_a_long_curve_keeps_its_spike_and_shows_medians() -> None:
    values = np.sin(np.arange(5000) / 500)
    values[1234] = 50.0
    raw, medians = points(curve("x", np.arange(5000), values))
    assert len(raw) < 500 and len(medians) == 80
    assert raw[:, 1].min() < -500  # far above the frame, whose scale it must not set
    assert medians[:, 1].min() > 0 and np.ptp(medians[:, 1]) > 80
    kept = thin(np.arange(5000), values)
    assert kept[1].max() == 50.0 and (np.diff(kept[0]) > 0).all()


def test_curves_of_odd_values() -> None:
    nan = curve("x", np.arange(3), np.array([1.0, 2.0, np.nan]))
    assert "<b>nan</b>" in nan and "1 not finite" in nan and len(points(nan)[0]) == 2
    assert DASH in curve("x", np.array([]), np.array([]))
    assert DASH in curve("x", np.arange(2), np.array([np.nan, np.inf]))
    for constant in (0.0, -3.0, 1e-9):
        ((first, last),) = points(curve("x", np.array([5]), np.array([constant])))
        assert 0 < first[1] < 126 and last[0] > first[0]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.3, 0.31), (1e-6, 3e-6), (950, 4200), (-1, -0.98)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 6 and low <= found[0] and found[-1] <= high
    gaps = np.diff(found)
    assert np.allclose(gaps, gaps[0]) and f"{gaps[0]:.0e}"[0] in "125"
