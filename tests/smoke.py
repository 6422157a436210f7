"""The whole way of a user, for the tiny folder of every family: `make smoke`.

Clips are preprocessed, a student is trained for ten cycles in two goes, exported, loaded and sampled by diffusers alone
and by launch/sample.py. A table says what was made and how long each part took.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
from families import FAMILIES, PROMPT, ROOT, build

REAL_CLIPS = ROOT.parent / "shared" / "clips"
CYCLES = 10

# Loads the export by diffusers alone and prints what its frames hash to, of the seed and call that its card gives.
PLAIN = """
import hashlib, json, sys, torch
from diffusers import DiffusionPipeline
folder, call = sys.argv[1], json.loads(sys.argv[2])
pipe = DiffusionPipeline.from_pretrained(folder)
pipe.set_progress_bar_config(disable=True)
torch.set_num_threads(1)
torch.manual_seed(0)
frames = pipe(**call, output_type="pt").frames
print("FRAMES", list(frames.shape), hashlib.sha256((frames * 255).round().byte().numpy().tobytes()).hexdigest()[:16])
"""

# torch loads the plugins of torchrun wherever it is used, and ours is one.
ALONE = """
ours = {name for name in sys.modules if name.split(".")[0] == "dollar"}
assert ours <= {"dollar", "dollar.parallel", "dollar.parallel.outcome"}
"""

# Runs a command of launch/ with its arguments, raising if it fails, and returns what it printed.
Run = Callable[..., str]


class Row(NamedTuple):
    """A family's line of the table: seconds of each part, and what was found."""

    family: str
    stored: int
    cycles: int
    seconds: dict[str, float]
    size: str
    same: bool


def write_clips(folder: Path, count: int = 6) -> Path:
    """Captioned clips of moving shapes, 17 frames of 64x64 at 8 frames a second, and one file that is no video."""
    from dollar import media
    from dollar.data import shapes

    folder.mkdir(parents=True)
    clips = shapes.ShapesClips("train", count, seed=0)
    rows = []
    for i in range(count):
        clip, caption = clips.clip(i)
        media.write_mp4(folder / f"{i}.mp4", clip, 8)
        rows.append({"file": f"{i}.mp4", "caption": caption})
    (folder / "torn.mp4").write_bytes(b"no video")
    rows.append({"file": "torn.mp4", "caption": "nothing"})
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def by_subprocess(command: str, *arguments: str) -> str:
    """launch/<command>.py as a user runs it."""
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch" / f"{command}.py"), *arguments],
        env={**os.environ, **threads},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"launch/{command}.py {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-2000:]}"
        )
    return done.stdout


def teacher_keys(family: str, folder: Path) -> list[str]:
    """The tiny teacher as a command line gives it: another family's adapter, folder and numbers in place of shapes'."""
    tiny = FAMILIES[family]
    states = tiny.load(folder).family.states()
    keys = {"_target_": f"{tiny.module}.load", **tiny.settings(folder, name=family), "decode_chunk": 1}
    stated = [f"teacher.states.{key}={states[key]}" for key in ("prediction", "frames", "cell")]
    return ["teacher=shapes", *(f"teacher.{key}={value}" for key, value in keys.items()), *stated]


def training_keys(family: str) -> list[str]:
    """A run of seconds that has all terms."""
    inside = ["vsd.guidance_scale=1", "cd.guidance_scale=1"] if family == "hunyuanvideo" else []
    small = [
        "batch=2",
        "fake_updates=2",
        "lrm.clips=2",
        "lrm.width=16",
        "lrm.groups=4",
        "lrm.memory=2",
        "lrm.updates=1",
    ]
    rest = ["lrm.warmup=2", "cd.m=2", "cd.grid=10", "validation.every=0", "save_every=5", "reward=colourfulness"]
    return ["data=latents", "teacher.text=stored", "student.steps=[4,2]", *inside, *small, *rest]


def run_family(family: str, work: Path, clips: Path, run: Run) -> Row:
    """All of the way for one family below the folder `work`."""
    seconds: dict[str, float] = {}

    def timed(name: str, command: str, *arguments: str) -> str:
        started = time.perf_counter()
        printed = run(command, *arguments)
        seconds[name] = time.perf_counter() - started
        return printed

    teacher = teacher_keys(family, build(family, work / "teacher"))
    stored = work / "stored"
    timed("preprocess", "preprocess", f"data={clips}", f"out={stored}", *teacher)
    train = [f"runs={work / 'runs'}", "run=smoke", f"data.path={stored}", *teacher, *training_keys(family)]
    timed("train", "train", *train, f"cycles={CYCLES // 2}")
    going_on = timed("resume", "train", *train, f"cycles={CYCLES}")
    assert f"going on at cycle {CYCLES // 2}" in going_on, going_on
    student, out = work / "runs" / "smoke" / "student", work / "export"
    timed("export", "export", f"checkpoint={student}", f"out={out}", f"prompt={PROMPT}")
    timed("sample", "sample", f"checkpoint={student}", f"out={work / 'samples'}", f"prompt={PROMPT}", "gif=false")
    started = time.perf_counter()
    plain = sample_plainly(family, out)
    seconds["diffusers"] = time.perf_counter() - started
    report = json.loads((stored / "report.json").read_text())
    card = json.loads((student / "student.json").read_text())
    return Row(
        family, sum(report["written"].values()), card["trained"], seconds, plain[0], plain[1] == by_ours(student)
    )


def plain_call(family: str) -> dict[str, Any]:
    """What the family's pipeline is called with."""
    tiny = FAMILIES[family]
    size = {f"{'num_' if key == 'frames' else ''}{key}": value for key, value in tiny.clip.items()}
    scale = tiny.guidance_scale if family == "hunyuanvideo" else 1.0  # its network is told the scale
    call = {
        "prompt": PROMPT,
        "num_inference_steps": 4,
        "guidance_scale": scale,
        "max_sequence_length": tiny.text_length,
    }
    return {**call, **size, **tiny.call}


def sample_plainly(family: str, export: Path) -> tuple[str, str]:
    """Shape and hash of the frames that diffusers alone makes of the export."""
    done = subprocess.run(
        [sys.executable, "-c", PLAIN + ALONE, str(export), json.dumps(plain_call(family))],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        cwd=export.parent,
    )
    if done.returncode != 0:
        raise RuntimeError(f"diffusers can't sample {export}:\n{done.stderr[-2000:]}")
    return frames_in(done.stdout)


def frames_in(printed: str) -> tuple[str, str]:
    """Shape and hash of the frames that PLAIN printed."""
    line = next(line for line in printed.splitlines() if line.startswith("FRAMES"))
    shape, digest = line.removeprefix("FRAMES ").rsplit(" ", 1)
    return shape, digest


def by_ours(student: Path) -> str:
    """The hash of the frames that launch/sample.py's sampler makes, before any video file rounds them."""
    import hashlib
    import importlib

    import torch

    from dollar.export.student import load_student, read_card
    from dollar.sampling.samplers import make_clips

    torch.set_num_threads(1)
    settings = {**read_card(student)["teacher"], "text": "online"}
    load = importlib.import_module(settings.pop("_target_").rpartition(".")[0]).load
    teacher = load(**settings)
    made = make_clips(load_student(student, teacher).sampler(teacher, 4), teacher, [PROMPT], [0], show=False)
    return hashlib.sha256(made.numpy().tobytes()).hexdigest()[:16]


def table(rows: list[Row]) -> str:
    """The rows as text."""
    parts = list(rows[0].seconds)
    head = f"{'family':<18}{'stored':>7}{'cycles':>7}" + "".join(f"{p:>12}" for p in parts) + "  same frames, of size"
    lines = [
        f"{r.family:<18}{r.stored:>7}{r.cycles:>7}"
        + "".join(f"{r.seconds[p]:>10.1f} s" for p in parts)
        + f"  {'yes' if r.same else 'NO':<4} {r.size}"
        for r in rows
    ]
    return "\n".join([head, *lines])


def main() -> None:
    """Go the way for all families, or those that are named, and print the table; exit code 1 if frames differ."""
    names = sys.argv[1:] or list(FAMILIES)
    work = Path(tempfile.mkdtemp(prefix="smoke-"))
    clips = REAL_CLIPS if REAL_CLIPS.is_dir() else write_clips(work / "clips")
    print(f"clips of {clips}; everything is below {work}")
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool:
        rows = []
        for row in pool.map(lambda name: run_family(name, work / name, clips, by_subprocess), names):
            print(f"{row.family}: done in {sum(row.seconds.values()):.0f} s", flush=True)
            rows.append(row)
    print("\n" + table(rows))
    shutil.rmtree(work)
    sys.exit(0 if all(row.same for row in rows) else 1)


if __name__ == "__main__":
    main()
