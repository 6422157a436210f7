"""The tables of what a reward's gradient costs, the paper's numbers next to ours, and the document they stand in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from dollar.benchmarks.memory import Count
from dollar.benchmarks.reward_costs import CLIP, DIRECT, LATENTS, LRMS, PIXELS, SMALL, SPREAD, Measured, Variant

WORKSPACE = 8.125  # MiB that cuBLAS takes for each thread that calls it, one in forward, two with backward
WHOLE, MOST = LATENTS[1], PIXELS[0]  # latent frames of a clip, and its frames
TEXT = "text-image LRM"
# Tables 1 and 10, as printed: "MB" for latent reward models, "GB" for CLIP.
PAPER = {"image LRM": ("189,441", "8.998", "17.772"), TEXT: ("763,009", "15.500", "26.277")}
PAPER_CLIP = ("632 million", "5.926", "> 90")
PAPER_FRAMES = {12: "12.373", 24: "20.577", 64: "48.413", 128: "> 90"}

HALF = Variant()
AS_PAPER = Variant(dtype=torch.float32, frozen=False)
RECOMPUTED = Variant(checkpointing=True)


class FramesRow(NamedTuple):
    """A line of the table of frames: a work and what to call it."""

    label: str
    kind: str
    variant: Variant


ROWS = (
    FramesRow("to the pixels: float32, the weights' gradients too (nearest the paper)", CLIP, AS_PAPER),
    FramesRow("float32, weights frozen", CLIP, Variant(dtype=torch.float32)),
    FramesRow("float16, weights frozen", CLIP, HALF),
    FramesRow("float16, frozen, attention keeps its table of pairs", CLIP, Variant(fused=False)),
    FramesRow("float16, frozen, blocks recomputed", CLIP, RECOMPUTED),
    FramesRow("to the latents through a decoder: float16, frozen", DIRECT, HALF),
    FramesRow("the same, blocks recomputed", DIRECT, RECOMPUTED),
    FramesRow("the same, not recomputed, frames evenly spaced over 128", SPREAD, HALF),
    FramesRow(f"to the latents through a small decoder, at most {LATENTS[1]} frames: float16, frozen", SMALL, HALF),
    FramesRow("the same, blocks recomputed", SMALL, RECOMPUTED),
)


class BenchmarkRun(NamedTuple):
    """A work that was really run, with what was counted for it; result: a sentence where it could not be."""

    kind: str
    frames: int
    counted: Count
    result: Measured | str


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and all others numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def mib(count: float) -> str:
    """Bytes in MiB."""
    return f"{count / 2**20:,.3f}"


def gib(count: float) -> str:
    """Bytes in GiB, or in MiB where that is little."""
    return f"{count / 2**30:,.2f}" if count >= 2**28 else f"{count / 2**20:,.1f} MiB"


def table_1(counts: Mapping[tuple[str, int, Variant], Count], parameters: Mapping[str, int], tower: int) -> str:
    """Parameters and memory of the models; tower: parameters of CLIP's part that sees pictures."""
    header = ["", "parameters: paper", "ours", "forward: paper", "ours, as there", "backward: paper", "ours, as there"]
    rows = []
    for kind in LRMS:
        printed, one = PAPER.get(kind, ("—",) * 3), counts[kind, 1, AS_PAPER]
        whole = f"{mib(counts[kind, WHOLE, HALF].backward)} MiB"
        ours = [as_there(one.forward, 1), printed[2], as_there(one.backward, 2)]
        rows.append([kind, printed[0], f"{parameters[kind]:,}", printed[1], *ours, whole])
    full, least = counts[CLIP, MOST, AS_PAPER], counts[CLIP, MOST, HALF]
    clip = [f"CLIP ViT-H/14, {MOST} frames", PAPER_CLIP[0], f"{tower:,} of {parameters[CLIP]:,}", PAPER_CLIP[1]]
    clip += [f"{gib(full.forward)} GiB", PAPER_CLIP[2], f"{gib(full.backward)} GiB", f"{gib(least.backward)} GiB"]
    return markdown([*header, "backward: ours, float16, frozen, whole clip"], [*rows, clip])


def as_there(tensors: int, threads: int) -> str:
    """What a latent reward model would take on a GPU, by what is counted of its tensors."""
    return f"{tensors / 2**20 + threads * WORKSPACE:.3f} MiB (tensors {mib(tensors)})"


def weights_table(counts: Mapping[tuple[str, int, Variant], Count], parameters: Mapping[str, int]) -> str:
    """What the models' weights take, in MiB."""
    known = {kind: count for (kind, _, variant), count in counts.items() if variant == HALF and kind != SPREAD}
    rows = [[k, f"{parameters[k]:,}", mib(c.weights), mib(2 * c.weights)] for k, c in known.items()]
    return markdown(["weights, MiB", "parameters", "float16", "float32"], rows)


def table_10(counts: Mapping[tuple[str, int, Variant], Count], frames: Sequence[int]) -> str:
    """Memory of forward and backward by frames."""
    rows = [["paper, as printed (GB)", *(PAPER_FRAMES.get(n, "—") for n in frames), slope(12.373, 48.413, 64 - 12)]]
    for label, kind, variant in ROWS:
        found = [counts[kind, n, variant].backward for n in frames]
        last = slope(found[0] / 2**30, found[-1] / 2**30, frames[-1] - frames[0])
        rows.append([label, *(gib(b) for b in found), last])
    for kind in (*PAPER, f"{TEXT} on a small decoder's pixels"):
        rows.append(
            [f"{kind}: float16, whole clip", *[mib(counts[kind, WHOLE, HALF].backward) + " MiB"] * len(frames), "—"]
        )
    return markdown(["GiB", *(f"{n} frames" for n in frames), "each further frame"], rows)


def slope(first: float, last: float, frames: int) -> str:
    """The difference for each frame."""
    return f"{(last - first) / frames:.3f}" if frames else "—"


def measured_table(runs: Sequence[BenchmarkRun]) -> str:
    """Seconds, and memory above weights and inputs: counted and measured."""
    header = ["", "frames", "forward, s", "with backward, s", "times", "forward: counted, MiB", "measured", "ratio"]
    header += ["with backward: counted, MiB", "measured", "ratio"]
    rows = []
    for kind, frames, count, result in runs:
        shown = f"{frames} latent" if kind in LRMS else str(frames)
        if isinstance(result, str):
            rows.append([kind, shown, result, *["—"] * 8])
            continue
        line = [kind, shown, f"{result.forward_seconds:.4g}", f"{result.gradient_seconds:.4g}", str(result.repeats)]
        for counted, rose in ((count.forward, result.forward_rise), (count.backward, result.gradient_rise)):
            own = counted - count.held
            line += [f"{own / 2**20:,.1f}", f"{rose / 2**20:,.1f}", f"{rose / own:.3f}"]
        rows.append(line)
    return markdown(header, rows)


def times_less(
    counts: Mapping[tuple[str, int, Variant], Count], flops: Mapping[tuple[str, int], int], frames: Sequence[int]
) -> str:
    """How many times less the text-image latent reward model takes, of memory and of arithmetic."""
    own, work = counts[TEXT, WHOLE, HALF].backward, flops[TEXT, WHOLE]

    def line(label: str, value: Callable[[int], float]) -> list[str]:
        return [label, *(f"{value(n):,.0f}" for n in frames)]

    rows = [
        line("memory: through decoder and CLIP", lambda n: counts[DIRECT, n, HALF].backward / own),
        line("memory: the same, blocks recomputed", lambda n: counts[DIRECT, n, RECOMPUTED].backward / own),
        line("memory: through a small decoder and CLIP", lambda n: counts[SMALL, n, HALF].backward / own),
        line("memory: the same, blocks recomputed", lambda n: counts[SMALL, n, RECOMPUTED].backward / own),
        line("memory: CLIP alone, to the pixels", lambda n: counts[CLIP, n, HALF].backward / own),
        line("arithmetic: through decoder and CLIP", lambda n: flops[DIRECT, n] / work),
        line("arithmetic: CLIP alone, to the pixels", lambda n: flops[CLIP, n] / work),
        line("TFLOP of a gradient through decoder and CLIP", lambda n: flops[DIRECT, n] / 1e12),
    ]
    return markdown([f"times {TEXT} on a whole clip", *(f"{n} frames" for n in frames)], rows)


def time_ratios(runs: Sequence[BenchmarkRun]) -> str:
    """How many times longer gradients took than the text-image latent reward model's on a whole clip."""
    known = {(r.kind, r.frames): r.result for r in runs if isinstance(r.result, Measured)}
    own = known.get((TEXT, WHOLE))
    if own is None:
        return "No times: the latent reward model was not run."
    lines = [
        f"- {kind}, {frames} frame{'s' * (frames > 1)}: {m.gradient_seconds / own.gradient_seconds:,.0f} times as long "
        f"as the {TEXT} on a whole clip of {WHOLE} latent frames ({own.gradient_seconds * 1000:.3g} ms)"
        for (kind, frames), m in known.items()
        if kind not in LRMS
    ]
    return "\n".join(lines)


def put_section(path: Path, name: str, body: str) -> None:
    """Write a document's section of that name, in place of the one that it has, or at its end; nothing else changes."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    section = f"{begin}\n{body.strip()}\n{end}"
    text = path.read_text(encoding="utf-8") if path.is_file() else "# Benchmarks\n"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    there = pattern.search(text)
    before, after = (text[: there.start()], text[there.end() :]) if there else (f"{text.rstrip()}\n\n", "\n")
    path.write_text(f"{before}{section}{after}", encoding="utf-8")
