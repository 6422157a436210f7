"""Places on the command line: every key that names one is declared as one, and takes any name as it stands."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import PROMPT, TINY_DATA, TINY_RUN, Said, compose
from omegaconf import OmegaConf
from test_settings import COMPOSED, unresolved

from dollar.cli import entry, kinds
from dollar.cli.arguments import as_they_stand
from dollar.cli.declared import UNDECLARED, flat, kind_of
from dollar.cli.overrides import check_overrides
from dollar.cli.settings import COMMANDS
from dollar.cli.sweeps import job_name, named_by
from dollar.cli.texts import settle_text
from dollar.cli.written import pieces, quoted

WORDS = (
    "folder path paths file files out runs work checkpoint init lora clip tokenizer cache observations nulls prompts"
)
LIKE_A_PLACE = re.compile(rf"(.*_)?({'|'.join(WORDS.split())})|autoencoder|instructions|teacher_metrics")
NO_PLACES = {
    *("export.lora", "student.lora"),  # a rank
    "validation.prompts",  # how many
    "data.cache",  # how many
    "monitors.alarm.name",  # of a logged number
    *("clip", "data.samples.cache"),  # a stage of pre-training; how many
}
NASTY = [
    "runs/betas/batch=2,beta_cd=0,data.path=a",
    "my clips, the (1) best",
    "größe/日本語",
    "a#b&c;d",
    "it's",
    "'quoted'",
    'say "hi"',
    "shards [1]",
    "[x]",
    "{x}",
    "{a: b}",
    "a$b%c",
    "${x}",
    "a\\b\\",
    "\\${x",
    "-leading",
    "trailing ",
    "a~b",
    "a:b",
    "1e3",
    "true",
    "a=b=c",
    "*?!",
    "@a|b<c>",
]


def places_of(name: str, given: tuple[str, ...] = ()) -> dict[str, Any]:
    """The keys of a composed configuration that are declared as places, those that only repeat another left out."""
    config = unresolved(name, given)
    declared = {key: kind_of(COMMANDS[name], config, key) for key in flat(config)}
    return {
        key: kind
        for key, kind in declared.items()
        if kind is not UNDECLARED and kinds.is_place(kind) and "${data." not in str(flat(config)[key])
    }


@pytest.mark.parametrize(("name", "given"), COMPOSED, ids=["-".join((n, *o)) for n, o in COMPOSED])
def test_what_looks_like_a_place_is_declared_as_one(name: str, given: tuple[str, ...]) -> None:
    config = unresolved(name, given)
    for key, value in flat(config).items():
        kind = kind_of(COMMANDS[name], config, key)
        text = kind is not UNDECLARED and kinds.is_text(kind)
        leaf = key.rpartition(".")[2]
        named = LIKE_A_PLACE.fullmatch(leaf) or (".parts." in key and key.count(".") == 2 and key.startswith("teacher"))
        there = isinstance(value, str) and "/" in value and not value.startswith("$") and leaf != "_target_"
        function = config["reward"].get("_target_") if key == "reward.path" else None
        if text and (named or there) and key not in NO_PLACES and "function" not in str(function):
            assert kinds.is_place(kind), f"{key}={value}: {kind}"


def settled(name: str, given: Sequence[str]) -> Callable[[str], Any]:
    """Key -> what it holds after these words of a command line."""
    words = as_they_stand(name, [*given])
    check_overrides(name, words)
    config = compose(name, *(word for word in words if "=" in word))
    settle_text(name, config)

    def value(key: str) -> Any:
        found = OmegaConf.select(config, key)
        return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found

    return value


def read_back(name: str, given: tuple[str, ...], key: str) -> Any:
    """What a key holds after these words of a command line."""
    return settled(name, given)(key)


def test_every_place_is_taken_as_it_stands() -> None:
    """Every place of every command and choice once, all of one choice's together."""
    places = [(n, g, key) for n, g in reversed(COMPOSED) if n != "plan" for key in places_of(n, g)]
    once = {(name, key): given for name, given, key in places}
    assert len(once) > 50
    assert {("sample", "checkpoint"), ("train", "teacher.lora"), ("train", "reward.clip")} <= once.keys()
    all_at_once = "".join(NASTY).replace("${x}", "")
    for name, given in sorted({(name, given) for (name, _), given in once.items()}):
        keys = [key for (n, key), g in once.items() if (n, g) == (name, given)]
        value = settled(name, (*given, *(f"{key}={all_at_once}" for key in keys)))
        assert {key: value(key) for key in keys} == dict.fromkeys(keys, all_at_once)


@pytest.mark.parametrize("place", NASTY)
def test_a_place_may_have_any_name(place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    existing = "$" in place or place[0] in "'"  # where there is no such place, these are what they mean to hydra
    if existing:
        Path(place).mkdir()
    assert read_back("sample", (f"checkpoint={place}",), "checkpoint") == place
    balanced = place.count("{") == place.count("}")
    value = settled("sample", (f"+teacher.lora={place}", *([f"teacher.parts={{vae: {place}}}"] * balanced)))
    assert value("teacher.lora") == place and (not balanced or value("teacher.parts.vae") == place.strip())
    Path(place).mkdir(parents=True, exist_ok=True)
    assert read_back("preprocess", (f"data=[{place}]",), "data.path") == [place.strip()]
    assert read_back("preprocess", (f"data={place}",), "data.path") == place


def test_a_place_and_what_it_means(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATA", "~/data")

    def data(given: str) -> Any:
        return read_back("preprocess", (f"data={given}",), "data.path")

    assert data("~/clips") == f"{tmp_path}/home/clips" and data("[~/a,b]") == [f"{tmp_path}/home/a", "b"]
    assert data("${oc.env:DATA}/clips") == f"{tmp_path}/home/data/clips"
    assert data("null") is None and data('"null"') == "null" and data("[]") == []
    assert data("[a, b c,'d,e']") == ["a", "b c", "d,e"] and data("'a,b'") == "a,b" and data("a,b") == "a,b"
    for name in ("~x", "[a,b]", "'q'", "a,b"):
        (tmp_path / name).mkdir()
        assert data(name) == name
    assert data("[a,b,c]") == ["a,b", "c"]  # a comma in the name of a place that exists
    (tmp_path / "~" / "out").mkdir(parents=True)
    assert read_back("export", ("out=~/out",), "out") == "~/out"  # there is a folder of this name here
    (tmp_path / "~" / "out").rmdir()
    assert read_back("export", ("out=~/out",), "out") == f"{tmp_path}/home/out"


def test_what_a_yaml_says_of_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nruns: ~/runs\ninit: ${runs}/a\nteacher: {lora: ~/l, negative_prompt: ~/p}\nrun: ~\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    seen: list[Any] = []
    for words in (["run=b"], ["-m", "run=b", "seed=1,2"]):
        monkeypatch.setattr(sys, "argv", ["train.py", "--config-dir=~", "experiment=mine", *words])
        monkeypatch.setattr("dollar.cli.sweeps.ResultsTable.on_multirun_end", lambda *_, **__: None)
        entry.enter(seen.append, "train")
    for config in seen:
        assert (config.runs, config.init, config.teacher.lora) == tuple(
            f"{tmp_path}/{n}" for n in ("runs", "runs/a", "l")
        )
        assert config.teacher.negative_prompt == "~/p"
    assert len(seen) == 3 and (tmp_path / "runs" / "b" / "multirun.yaml").is_file()


@pytest.mark.parametrize("name", ["a=b,c", "größe (1)", "it's #1", "a$b {c}", "-x", "[y]"])
def test_a_folder_of_yamls_may_have_any_name(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name / "experiment").mkdir(parents=True)
    (tmp_path / name / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 77\n")
    seen: list[int] = []
    for option in (["--config-dir", name], [f"--config-dir={name}"], ["-cd", str(tmp_path / name)]):
        monkeypatch.setattr(sys, "argv", ["train.py", "experiment=mine", *option, f"run={name}"])
        entry.enter(lambda config: seen.append((config.seed, config.run)), "train")
    assert seen == [(77, name)] * 3


def test_the_values_of_a_sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c,d").mkdir()

    def swept(*words: str) -> list[str]:
        return as_they_stand("train", ["-m", *words])[1:]

    assert swept("teacher.folder=a,b") == ['teacher.folder="a","b"']
    assert swept("teacher.folder=a,c,d") == ['teacher.folder="a","c,d"'] and swept("init=c,d") == ['init="c,d"']
    assert swept("init=null,a=b") == ['init=null,"a=b"'] and swept("run='x,y',z") == ["run='x,y',\"z\""]
    assert swept("teacher.negative_prompt=ugly, blurry") == ['teacher.negative_prompt="ugly, blurry"']
    assert swept("run=choice(a,b)", "seed=1,2") == ["run=choice(a,b)", "seed=1,2"]
    assert as_they_stand("sample", ["-m", "prompt=a,b"])[1:] == ['prompt="a,b"']
    assert pieces("[1,2],(3,4),'5,6',7", ",") == ["[1,2]", "(3,4)", "'5,6'", "7"]


def test_quotes_are_undone_by_hydra_and_omegaconf() -> None:
    """Any text of these letters, as one value and as one of a sweep."""
    import itertools

    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    for letters in itertools.product(("\\", '"', "'", "${", "}", "a", "\n"), repeat=4):
        text = "".join(letters)
        swept = parser.parse_override(f"k={quoted(text)},{quoted('z')}")
        for word in (f"k={quoted(text)}", f"k={next(iter(swept.sweep_string_iterator()))}"):
            value = parser.parse_override(word).value()
            assert OmegaConf.create({"k": value}).k == text, text


# Sweeps


def names(*words: str) -> list[str]:
    """The folders of a sweep's jobs."""
    import itertools

    from hydra.core.override_parser.overrides_parser import OverridesParser

    given = as_they_stand("train", ["-m", *words])
    chosen = [word for word in named_by(given) for word in re.findall(r'"([^"]*)"', word)]
    parsed = [OverridesParser.create().parse_override(word) for word in given[1:]]
    values = [
        list(o.sweep_string_iterator()) if o.is_sweep_override() else [w.partition("=")[2]]
        for o, w in zip(parsed, given[1:], strict=True)
    ]
    keys = [word.partition("=")[0] for word in given[1:]]
    return [
        job_name([f"{k}={v}" for k, v in zip(keys, job, strict=True)], chosen or ["run", "runs"])
        for job in itertools.product(*values)
    ]


def test_a_sweeps_folders_are_named_by_what_varies() -> None:
    fixed = ("run=betas", "batch=2", "teacher.folder=/a=b, c", "lrm={width: 16}", "cycles=3")
    assert names(*fixed, "beta_cd=0,0.1", "beta_ft=1,2") == [
        "beta_cd=0,beta_ft=1",
        "beta_cd=0,beta_ft=2",
        "beta_cd=0.1,beta_ft=1",
        "beta_cd=0.1,beta_ft=2",
    ]
    assert names("vsd.range=[0.1,0.9],[0.2,0.8]") == ["vsd.range=0.1_0.9", "vsd.range=0.2_0.8"]
    assert names("reward=shapes,flicker", "seed=1") == ["reward=shapes", "reward=flicker"]
    assert names("student.lora=null,4") == ["student.lora=null", "student.lora=4"]
    assert names("run=x", "seed=3", "batch=2") == ["batch=2,seed=3"]
    assert names("run=a,b", "seed=1") == ["", ""]  # runs/a and runs/b themselves
    assert names("batch=2", "batch=4,8", "seed=1,2", "seed=3") == ["batch=4"] * 2 + ["batch=8"] * 2  # the last counts


def test_places_and_texts_have_short_names_of_their_own() -> None:
    found = names("teacher.folder=/a/größe x,/b/größe x,a_b,a b", f"teacher.negative_prompt={'long ' * 90},short")
    assert len({*found}) == 8 and all(re.fullmatch(r"[\w.=,+-]{1,120}", name, re.ASCII) for name in found)
    assert any("teacher.folder=a_b" in name for name in found)
    with pytest.raises(ValueError, match="seed=1,1 gives a value twice"):
        named_by(["-m", "seed=1,1"])
    with pytest.raises(ValueError, match="the jobs of a sweep lie in one folder"):
        named_by(["-m", "runs=a,b"])


def test_a_sweep_that_has_no_folder_is_a_sentence(command: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    given = {
        f"runs={tmp_path}/file": "is a file; name a folder",
        "runs=/proc/none": "the folder /proc/none/first can't be made: the system says: No such file or directory",
        "runs=${oc.env:NO_SUCH_FOLDER}": "runs: Environment variable 'NO_SUCH_FOLDER' not found",
        "run=../up": "run=../up names no folder below runs=",
    }
    for word, sentence in given.items():
        said = command("train", f"runs={tmp_path}", word, "-m", "seed=1,2")
        assert (said.code, len(said.err.splitlines())) == (2, 1) and sentence in said.err, said.err
    said = command("sample", "teacher=shapes", f"prompt={PROMPT}", "out=/proc/none")
    assert said.code == 2 and said.err.startswith("sample.py: the folder /proc/none can't be made: the system"), (
        said.err
    )
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and not (tmp_path.parent / "up").exists()


def test_a_sweep_over_runs(command: Callable[..., Said], tiny_teacher_folder: Path, tmp_path: Path) -> None:
    words = (*TINY_RUN, *TINY_DATA, f"teacher.folder={tiny_teacher_folder}", f"runs={tmp_path}", "cycles=1")
    said = command("train", "-m", *words, "run=a,b")
    assert said.code == 0, said.err
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "sweep.json", "multirun.yaml"}
    assert all((tmp_path / name / "student" / "student.json").is_file() for name in "ab")


@pytest.mark.parametrize("text", ["${x}", "${x", "a\\${b}", "a\\\\${", "plain\\"])
def test_an_object_gets_the_text_that_a_key_holds(text: str, tmp_path: Path) -> None:
    from dollar.cli.build.objects import as_text, instantiate
    from dollar.cli.written import escaped

    inner = {"_target_": "builtins.dict", "d": "${place}"}
    node = {"_target_": "builtins.dict", "a": "${place}", "b": ["${place}"], "c": inner}
    made = instantiate(OmegaConf.create({"place": escaped(text), "node": node}).node)
    assert (made["a"], list(made["b"]), made["c"]["d"]) == (text, [text], text)
    OmegaConf.save(OmegaConf.create(as_text({"place": text})), tmp_path / "stored.yaml")
    assert OmegaConf.load(tmp_path / "stored.yaml").place == text


def test_a_sweep_below_a_folder_of_any_name(
    command: Callable[..., Said], tiny_teacher_folder: Path, tmp_path: Path
) -> None:
    """Its jobs' students are sampled, exported, started from and looked at by their paths as they are."""
    place = tmp_path / "größe, (1) it's #$x=y [z] ${a}"
    own = place / "teacher=tiny, b"
    shutil.copytree(tiny_teacher_folder, own)
    common = (*TINY_RUN, *TINY_DATA, f"teacher.folder={own}", f"runs={place}", "cycles=1")
    said = command("train", "-m", *common, "run=a=b", "beta_cd=0,0.5")
    assert said.code == 0, said.err
    jobs = [place / "a=b" / name for name in ("beta_cd=0", "beta_cd=0.5")]
    assert sorted(path for path in (place / "a=b").iterdir() if path.is_dir()) == jobs
    assert [row["run"] for row in json.loads((place / "a=b" / "sweep.json").read_text())] == [job.name for job in jobs]
    assert "beta_cd=0.5 is finished" in command("train", "-m", *common, "run=a=b", "beta_cd=0,0.5").out
    student = f"checkpoint={jobs[1] / 'student'}"
    small = ("parallel.device=cpu", f"teacher.folder={own}")
    said = command("sample", student, *small, f"prompt={PROMPT}", f"out={place}/clips", "gif=false")
    assert said.code == 0 and len(list((place / "clips").glob("*.mp4"))) == 1, said.err
    said = command("export", f"checkpoint={jobs[0]}", *small, f"out={place}/export, 1", "verify=false")
    assert said.code == 0 and (place / "export, 1" / "model_index.json").is_file(), said.err
    said = command("train", *common, "run=c", f"init={jobs[0] / 'student'}")
    assert said.code == 0 and (place / "c" / "student" / "student.json").is_file(), said.err
    said = command("evaluate", student, *small)
    assert said.code == 2 and "evaluation reads the shapes world's" in said.err  # it has read student and teacher


# Sentences


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        (
            "train",
            ["teacher=wan"],
            "no teacher=wan; the nearest is 'wan_2_1_1_3b', then 'wan_2_1_14b', 'wan_2_2_ti2v_5b'",
        ),
        ("train", ["teacher=Wan2.1-T2V-1.3B"], "the nearest is 'wan_2_1_1_3b'"),
        ("train", ["teacher=cogvideox2b"], "the nearest is 'cogvideox_2b'"),
        ("train", ["teacher=ltx"], "the nearest is 'ltx_video_2b'"),
        ("train", ["reward=jpeg"], "'jpeg_compressibility'"),
        ("train", ["reward=score"], "'clip_score'"),
        (
            "train",
            ["teacher=/models/wan"],
            "teacher=/models/wan names a place; name a choice and give the place by its key",
        ),
        ("train", ["data=/my/clips"], "data=clips data.path=/my/clips"),
        ("sample", ["--checkpoint=a"], "no option --checkpoint; a setting is given without dashes, as checkpoint=a"),
        (
            "sample",
            ["--guidance-scale", "3"],
            "no option --guidance-scale; a setting is given without dashes, as guidance_scale=VALUE",
        ),
        ("sample", ["checkpoint", "=", "a"], "everything is given as key=value, without blanks around ="),
        ("sample", ["checkpoint=", "a"], "everything is given as key=value, without blanks around ="),
        ("sample", ["checkpoint=my", "student"], "what has blanks in quotes: 'checkpoint=my student'"),
        ("sample", ["checkpoint:=a"], "no key 'checkpoint:'; the nearest is 'checkpoint'"),
        ("train", ["cycles=1_000.5"], "cycles is a whole number"),
        ("train", ["cycles=1e3"], "cycles=1e3: cycles is a whole number (now 200); write cycles=1000"),
        ("train", ["cycles=10k"], "cycles=10k: cycles is a whole number"),
        ("train", ["beta_cd=0,5"], "beta_cd=0,5 gives several values"),
        ("train", ["lrm.text=yes"], "lrm.text=yes: lrm.text is true or false"),
        ("train", ["lrm.text=True,"], "can't be read"),
    ],
)
def test_a_sentence_says_how_to_write_it(name: str, given: list[str], words: str) -> None:
    with pytest.raises(ValueError) as refused:
        check_overrides(name, as_they_stand(name, given))
    assert words in str(refused.value)


def test_a_name_of_code_given_as_a_file(command: Callable[..., Said]) -> None:
    from dollar.rewards.function import Function
    from dollar.training.trackers import check_trackers

    for path, meant in {
        "my.py:fn": "my.fn",
        "a/my.py:fn": "a.my.fn",
        "/x/my.py:fn": "my.fn",
        "my:fn": "my.fn",
        "my-r.py:fn": "my-r.fn",
    }.items():
        with pytest.raises(ValueError, match=re.escape(f"is {path!r}; write it with dots, as {meant}")):
            Function(path)
        with pytest.raises(ValueError, match=re.escape(f"names {path!r}; write it with dots, as {meant}")):
            check_trackers([path])
        said = command("train", f"reward._target_={path}")
        assert said.code == 2 and f"reward._target_ is {path!r}; write it with dots, as {meant}" in said.err
    with pytest.raises(ValueError, match=r"name a function in it, as my\.my_reward"):
        Function("my.py")


def test_an_environment_variable_that_is_not_there(command: Callable[..., Said]) -> None:
    said = command("sample", "checkpoint=${oc.env:NO_SUCH_FOLDER}/a")
    assert said.code == 2 and len(said.err.splitlines()) == 1 and "NO_SUCH_FOLDER" in said.err


def test_what_the_system_says_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError) as gone:
        (tmp_path / "none").read_text()
    assert entry._sentence(gone.value) == f"{tmp_path}/none: the system says: No such file or directory"
    assert entry._sentence(OSError("a sentence")) == "a sentence"


def test_a_lora_that_is_not_there_is_named_by_its_key(command: Callable[..., Said], tmp_path: Path) -> None:
    lora = tmp_path / "none.safetensors"
    said = command(
        "sample", "teacher=shapes", "steps=2", f"prompt={PROMPT}", f"teacher.lora={lora}", f"out={tmp_path}/o"
    )
    sentence = (
        f"no LoRA (teacher.lora) at {lora}: the file or folder doesn't exist. Give teacher.lora=PLACE, or a hub id"
    )
    assert said.code == 2 and said.err == f"sample.py: {sentence}\n"
