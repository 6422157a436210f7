"""launch/sample.py's folder: clips that are there are kept, all others are made, and the manifest lists them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PROMPT, TINY_RUN, Said, fork, free_port, new_network
from test_launch import sentence

from dollar import media
from dollar.contents import sha256_of
from dollar.export.student import few_steps, save_student
from dollar.models.teacher import Teacher
from dollar.sampling.files import UNFINISHED, ClipFolder, batches, requests
from dollar.sampling.manifest import Manifest, ordered

PROMPTS = [PROMPT, "a large blue cross standing still on a white background", "a small red square moving up"]
SIZE = [o for o in TINY_RUN if o.startswith("teacher.")]


@pytest.fixture
def keys(tiny_teacher_folder: Path) -> list[str]:
    """The arguments of a call that samples the tiny teacher in two steps."""
    return [*SIZE, f"teacher.folder={tiny_teacher_folder}", "steps=2", "gif=false", "parallel.device=cpu"]


@pytest.fixture
def sample(command: Callable, keys: list[str], tmp_path: Path) -> Callable[..., Said]:
    def run(*further: str, prompts: list[str] = PROMPTS, out: str = "out") -> Said:
        (tmp_path / "prompts.txt").write_text("\n".join(prompts), "utf-8")
        return command("sample", *keys, f"prompts={tmp_path / 'prompts.txt'}", f"out={tmp_path / out}", *further)

    return run


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text("utf-8").split("\n") if line]


def clips(folder: Path) -> dict[str, bytes]:
    assert not list(folder.glob(".*tmp")) and not list(folder.glob(".manifest*"))
    return {path.name: path.read_bytes() for path in folder.glob("*.mp4")}


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading any weights is a mistake by itself."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("no weights may be read for this")

    monkeypatch.setattr("dollar.models.pipeline.Pipeline.read", forbidden)
    monkeypatch.setattr("dollar.models.teacher.Teacher.load_network", forbidden)


def test_a_stopped_call_goes_on_with_the_clips_that_it_made(
    sample: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sample(out="whole").code == 0
    own, written = media.write_mp4, []

    def stops(path: Path, *clip: Any) -> None:
        if len(written) == 1:
            (path.parent / f".{path.name[:50]}.123-0a1b2c3d.tmp").write_bytes(b"half a clip")
            raise OSError("the machine went away")
        written.append(path)
        own(path, *clip)

    with monkeypatch.context() as patched:
        patched.setattr(media, "write_mp4", stops)
        assert sample().code == 2
    (first,) = rows(tmp_path / "out")  # listed as soon as it was there
    assert first["prompt"] == PROMPTS[0] and first["sha256"] == sha256_of(tmp_path / "out" / first["file"])
    kept = (tmp_path / "out" / first["file"]).stat().st_mtime_ns
    said = sample()
    assert said.code == 0 and "3 clips are in" in said.out and "2 made now, 1 kept" in said.out
    assert (tmp_path / "out" / first["file"]).stat().st_mtime_ns == kept
    assert clips(tmp_path / "out") == clips(tmp_path / "whole") and len(clips(tmp_path / "out")) == 3
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")
    assert [row["prompt"] for row in rows(tmp_path / "out")] == PROMPTS


def test_an_interrupt_ends_in_a_sentence_and_keeps_what_is_there(
    sample: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, written = media.write_mp4, []

    def interrupted(path: Path, *clip: Any) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path)
        own(path, *clip)

    with monkeypatch.context() as patched:
        patched.setattr(media, "write_mp4", interrupted)
        said = sample()
    assert said.code == 3 and "stopped; the same command goes on" in said.out and "Traceback" not in said.err
    assert "2 made now, 1 kept" in sample().out


def test_what_is_all_there_is_kept_without_reading_the_teacher(
    sample: Callable, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    assert sample().code == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.mp4")}
    request.getfixturevalue("unread")
    said = sample()
    assert said.code == 0 and "0 made now, 3 kept" in said.out, said.err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.mp4")} == before
    fewer = sample(prompts=PROMPTS[:1])  # others stay listed
    assert "1 clip is in" in fewer.out and len(rows(tmp_path / "out")) == 3


def test_what_is_damaged_is_made_again(sample: Callable, tmp_path: Path) -> None:
    assert sample().code == 0
    out = tmp_path / "out"
    whole, listed = clips(out), rows(out)
    short, turned, gone = (out / row["file"] for row in listed)
    short.write_bytes(whole[short.name][:-100])
    turned.write_bytes(whole[turned.name][:-1] + bytes([whole[turned.name][-1] ^ 1]))  # as long as before
    gone.unlink()
    said = sample()
    assert "note: 2 clips" in said.out and "damaged or changed since: made anew" in said.out
    assert "3 made now, 0 kept" in said.out and clips(out) == whole and rows(out) == listed
    lines = (out / "manifest.jsonl").read_text("utf-8").split("\n")
    (out / "manifest.jsonl").write_text("\n".join([lines[0], lines[1][:40], "7", lines[2]]), "utf-8")
    said = sample()
    assert said.out.count("is damaged and left out") == 2 and "1 made now, 2 kept" in said.out
    assert rows(out) == listed


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("guidance_scale=2", "guidance_scale"),
        ("tiling=true", "tiling"),
        ("parallel.teacher_dtype=bfloat16", "dtype, settings"),
        ("teacher.negative_prompt=dull", "settings"),
        ("teacher.fps=4", "fps"),
    ],
)
def test_another_setting_makes_it_anew_and_says_so(sample: Callable, tmp_path: Path, change: str, key: str) -> None:
    assert sample(prompts=PROMPTS[:1]).code == 0
    (before,) = rows(tmp_path / "out")
    said = sample(change, prompts=PROMPTS[:1])
    assert f"note: 1 clip in {tmp_path / 'out'}, made with other {key}: made anew" in said.out, said.out
    (after,) = rows(tmp_path / "out")
    assert after["file"] == before["file"] and "1 made now, 0 kept" in said.out
    assert sample(change, prompts=PROMPTS[:1]).out.count("made anew") == 0


def test_a_student_that_was_trained_on_makes_its_clips_anew(
    command: Callable, teacher: Teacher, tiny_teacher_folder: Path, tmp_path: Path
) -> None:
    """Its weights are known by their bytes, wherever the folder lies and whatever it is called."""
    import torch

    network = new_network(teacher)
    settings = {"_target_": "dollar.models.cogvideox.load", "name": "tiny", "folder": str(tiny_teacher_folder)}
    settings |= {"frames": 9, "height": 32, "width": 32, "fps": 8, "guidance_scale": 3.0, "text_length": 12}
    samplers = few_steps(teacher, None, [2], "renoise")
    save_student(tmp_path / "run" / "student", teacher, network, samplers, {"teacher": settings})
    keys = [f"prompt={PROMPT}", f"out={tmp_path / 'out'}", "gif=false"]
    assert command("sample", f"checkpoint={tmp_path / 'run' / 'student'}", *keys).code == 0
    (row,) = rows(tmp_path / "out")
    assert row["by"] == "student" and row["checkpoint"] == "run" and str(tmp_path) not in json.dumps(row)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").rename(tmp_path / "elsewhere" / "run")
    moved = f"checkpoint={tmp_path / 'elsewhere' / 'run' / 'student'}"
    assert "0 made now, 1 kept" in command("sample", moved, *keys).out
    with torch.no_grad():
        network.transformer.proj_out.bias[0] += 1
    save_student(tmp_path / "elsewhere" / "run" / "student", teacher, network, samplers, {"teacher": settings})
    said = command("sample", moved, *keys)
    assert "made with other weights: made anew" in said.out and "1 made now" in said.out


def test_calls_with_other_prompts_add_up_in_the_order_of_prompts(sample: Callable, tmp_path: Path) -> None:
    assert sample(prompts=PROMPTS[1:]).code == 0
    odd = "été: 紅い円\u2028 {x} 'y'"  # a line separator is no end of a line
    assert "2 made now, 1 kept" in sample("force=true", prompts=[PROMPTS[0], odd, PROMPTS[2]]).out
    assert [row["prompt"] for row in rows(tmp_path / "out")] == [PROMPTS[1], PROMPTS[0], odd, PROMPTS[2]]
    assert odd in (tmp_path / "out" / "manifest.jsonl").read_text("utf-8").replace("\\", "")


def test_what_a_killed_call_leaves_is_known_by_its_name(tmp_path: Path) -> None:
    with media.atomically(tmp_path / f"{'a long name ' * 9}.mp4") as temporary:
        temporary.write_bytes(b"half a clip")
        assert UNFINISHED.fullmatch(temporary.name)


def test_wanted_files_are_in_their_order_and_others_where_they_stood() -> None:
    assert ordered(["c", "a"], ["a", "b", "c"]) == ["a", "c"]
    assert ordered(["x", "c", "y", "a"], ["a", "b", "c"]) == ["x", "a", "c", "y"]
    assert ordered(["x"], ["a"]) == ["x"] and ordered([], ["a"]) == []


def test_processes_share_out_and_may_be_another_number_after_a_kill(
    sample: Callable, keys: list[str], tmp_path: Path
) -> None:
    """Two processes are killed with two clips of six made; one process makes the rest, in batches as they were."""
    prompts = [*PROMPTS, *(p.replace("small", "large") for p in (PROMPTS[0], PROMPTS[2])), PROMPT]
    how = ["batch=2", "clips=1"]
    assert sample(*how, prompts=prompts, out="whole").code == 0
    out, port = tmp_path / "out", free_port()
    arguments = [*keys, f"prompts={tmp_path / 'prompts.txt'}", f"out={out}", *how]
    started = [fork(tmp_path, "sample", *arguments, rank=i, size=2, port=port) for i in range(2)]
    end = time.monotonic() + 100
    while len(list(out.glob("*.mp4"))) < 2 and time.monotonic() < end and any(p.is_alive() for p in started):
        time.sleep(0.005)
    for process in started:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert 2 <= len(list(out.glob("*.mp4"))) < 6, (tmp_path / "0.out").read_text()
    said = sample(*how, prompts=prompts)
    assert said.code == 0, said.err
    assert clips(out) == clips(tmp_path / "whole") and rows(out) == rows(tmp_path / "whole")
    assert [row["prompt"] for row in rows(out)] == prompts
    # ... and two processes that are left alone.
    port = free_port()
    arguments[-3] = f"out={tmp_path / 'two'}"
    started = [fork(tmp_path, "sample", *arguments, rank=i, size=2, port=port) for i in range(2)]
    for process in started:
        process.join(100)
        assert process.exitcode == 0, (tmp_path / "0.out").read_text()
    assert clips(tmp_path / "two") == clips(tmp_path / "whole") and rows(tmp_path / "two") == rows(tmp_path / "whole")


def test_batches_are_cut_as_if_nothing_were_there() -> None:
    wanted = requests(["a", "b", "c", "d", "e"], 0, 1, 2, "x")
    cut = batches(wanted, [wanted[1], wanted[4]], 2)
    assert [[r.prompt for r in part] for part in cut] == [["a", "b"], ["e"]]


def test_a_second_call_into_a_folder_in_use_is_refused(sample: Callable, tmp_path: Path) -> None:
    from dollar.parallel.lock import Lock

    lock = Lock(tmp_path / "out")
    said = sample(prompts=PROMPTS[:1])
    sentence(said, "another command writes to", str(tmp_path / "out"))
    lock.close()
    assert sample(prompts=PROMPTS[:1]).code == 0


def test_a_gif_that_is_wanted_later_is_made(sample: Callable, tmp_path: Path) -> None:
    assert sample(prompts=PROMPTS[:1]).code == 0
    before = clips(tmp_path / "out")
    said = sample("gif=true", prompts=PROMPTS[:1])
    assert "without a GIF: made anew" in said.out and clips(tmp_path / "out") == before
    assert len(list((tmp_path / "out").glob("*.gif"))) == 1


def test_names_differ_where_clips_do(keys: list[str]) -> None:
    """Also where a file system takes a for A, and where names of runs are long."""
    from conftest import compose

    from dollar.cli.build.sampling import called

    made = [media.safe_name(p, 0, 4, "demo") for p in ("A dog", "a dog", "a Dog")]
    long = "a-student-with-a-very-long-name"
    made += [media.safe_name("a dog", 0, 4, by) for by in ("Demo", "de_mo", "de.mo", f"{long}-1", f"{long}-2")]
    sizes = ["frames=9", "height=9", "width=9", "fps=9"]
    made += [media.safe_name("a dog", 0, 4, called(compose("sample", f"checkpoint={long}/student", s))) for s in sizes]
    assert len({name.lower() for name in made}) == len(made)


def test_a_long_list_takes_a_tenth_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each clip is noted at once; the list, which takes a second here as each clip does, is written now and then."""
    now, write, listed = [0.0], Manifest.write, []

    def slowly(manifest: Manifest, rows: Any) -> None:
        now[0] += 1
        listed.append(len(rows))
        write(manifest, rows)

    monkeypatch.setattr("dollar.sampling.manifest.time.monotonic", lambda: now[0])
    monkeypatch.setattr(Manifest, "write", slowly)
    names = [f"{i:02}.mp4" for i in range(30)]
    manifest = Manifest(tmp_path, names)
    for name in names:
        manifest.add({"file": name})
        now[0] += 1
    assert listed == [1, 10, 19, 28]
    assert list(Manifest(tmp_path, names).rows()) == names  # as another call finds them after a kill
    manifest.tidy(manifest.rows())
    assert [row["file"] for row in rows(tmp_path)] == names and not list(tmp_path.glob(".manifest*"))


def test_what_cant_be_made_is_told_before_anything_is_read(
    command: Callable, sample: Callable, unread: None, tmp_path: Path, teacher: Teacher
) -> None:
    for keys, words in (
        (["height=40"], ["40x32", "multiples of 16"]),
        (["frames=8"], ["8 frames", "8k + 1"]),
        (["fps=0"], ["fps is 0"]),
        (["fps=1e9"], ["fps is 1000000000.0", "1000"]),
        (["fps=0.0001"], ["fps is 0.0001", "0.001"]),
        (["seed=9223372036854775808"], ["seed is 9223372036854775808", "9223372036854775807"]),
        (["seed=9223372036854775807", "clips=2"], ["seed is 9223372036854775807", "the next one"]),
        (["steps=1001"], ["steps is 1001", "scheduler"]),
        (["teacher.parts.vae=/nowhere"], ["no teacher.parts.vae at /nowhere"]),
        (["teacher.text=stored"], ["teacher.text is stored", "teacher.text=online"]),
        (["parallel.device=gpu"], ["parallel.device is 'gpu'"]),
    ):
        sentence(sample(*keys), *words)
    sentence(sample(prompts=[PROMPT, PROMPT + " and a dog"]), "has 15 tokens", "reads 12", "force=true")
    prompt = f"out={tmp_path / 'out'}"
    sentence(command("sample", prompt, f"prompt=['{PROMPT}','']"), "prompt 2 of 2 is empty")
    sentence(command("sample", prompt, "prompt=[' ']"), "there is no prompt")
    sentence(command("sample", prompt, "prompt=a d\udcffg"), "no UTF-8 text")
    student = tmp_path / "run" / "student"
    samplers = few_steps(teacher, None, [4, 2], "renoise")
    settings = {"_target_": "dollar.models.cogvideox.load", "name": "tiny", "folder": str(teacher.folder)}
    settings |= {"frames": 9, "height": 32, "width": 32, "fps": 8, "guidance_scale": 3.0, "text_length": 12}
    save_student(student, teacher, new_network(teacher), samplers, {"teacher": settings})
    keys = [f"checkpoint={student}", prompt, f"prompt={PROMPT}"]
    sentence(command("sample", *keys, "steps=3"), "steps is 3", "trained for 4 or 2", "force=true")
    sentence(command("sample", *keys, "width=40"), "32x40", "multiples of")
    next(student.glob("transformer/*.safetensors")).write_bytes(b"torn")
    sentence(command("sample", *keys), "can't be read")
    next(student.glob("transformer/*.safetensors")).unlink()
    sentence(command("sample", *keys), "lacks", "weights")
    assert not (tmp_path / "out").exists()


def test_a_manifest_survives_a_call_that_makes_nothing(tmp_path: Path) -> None:
    folder = ClipFolder(tmp_path, requests(["a"], 0, 1, 2, "x"), {}, False)
    assert not folder.take_stock() and len(folder.missing()) == 1
    assert not (tmp_path / "manifest.jsonl").exists()
