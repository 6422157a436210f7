"""launch/vip.py killed once inside each of its steps gives the weights of an undisturbed run: `make test-vip`.

The command and the step that it runs are killed by SIGKILL at half of the time that the step takes undisturbed, then
the same command is given again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERBS = ("rank", "prune", "pairs", "train", "score")
SMALL = (
    "teacher=shapes_deep",
    "stages=[1]",
    "steps=2",
    "give_up=0",
    "repeats=0",
    "rank=[clips=4,looks=2,batch=2]",
    "pairs=[clips=12,probe=4,batch=4,floor=null,widest=false,target=shape]",
    "train=[cycles=8,batch=2,save_every=2,validation.every=0]",
    "score=[clips=4]",
    "evaluate=[clips=64,teacher_clips=64,real=false,repeats=0,report=false]",
    "export=[verify=false]",
)


def begin(out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "launch" / "vip.py"), *SMALL, f"out={out}"]
    with (out.parent / f"{out.name}.log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)


def finished(out: Path) -> None:
    """Run to the end."""
    if begin(out).wait() != 0:
        sys.exit((out.parent / f"{out.name}.log").read_text()[-2000:])


def killed_in(out: Path, verb: str, after: float) -> bool:
    """Kill the command so many seconds after it has begun a step; whether that step was still under way."""
    process, running = begin(out), out / "running.json"
    while process.poll() is None:
        with contextlib.suppress(OSError, ValueError, KeyError):
            step = json.loads(running.read_text())
            if any(f"launch/{verb}.py" in word for word in step["command"]):
                break
        time.sleep(0.05)
    time.sleep(after)
    under_way = process.poll() is None and running.exists()
    for number in (process.pid, step["process"]):
        with contextlib.suppress(OSError):
            os.kill(number, signal.SIGKILL)
    process.wait()
    steps = out / "steps.json"
    return under_way and not (steps.is_file() and f"stage1/{verb}" in json.loads(steps.read_text()))


def made(out: Path) -> dict[str, str]:
    """What came out, as hashes."""
    student = out / "stage1" / "train" / "student" / "transformer" / "diffusion_pytorch_model.safetensors"
    files = [student, out / "stage1" / "rank" / "ranking.json", out / "stage1" / "pairs" / "pairs.jsonl"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        undisturbed, disturbed = Path(folder) / "undisturbed", Path(folder) / "killed"
        finished(undisturbed)
        seconds = {name: step["seconds"] for name, step in json.loads((undisturbed / "steps.json").read_text()).items()}
        for verb in VERBS:
            took = seconds[f"stage1/{verb}"]
            inside = killed_in(disturbed, verb, took / 2)
            print(f"killed in {verb}, {took / 2:.1f} s after it began" + ("" if inside else ", which had ended"))
        finished(disturbed)
        one, other = made(undisturbed), made(disturbed)
        for name, digest in one.items():
            print(f"{name:40} {digest} {other[name]} {'the same' if digest == other[name] else 'DIFFERENT'}")
        if one != other:
            sys.exit(1)


if __name__ == "__main__":
    main()
