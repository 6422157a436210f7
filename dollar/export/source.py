"""A trained student, wherever a run has left it: as a student's folder or in a checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dollar.models.pipeline import Weights
    from dollar.models.teacher import Teacher

KINDS = {"ema": "ema/transformer.", "last": "student/transformer."}  # weights -> where a checkpoint has them


@dataclass(frozen=True)
class StudentSource:
    """A student to be exported: its card, its tensors, what their names begin with, and the folder of its run."""

    place: Path
    card: dict[str, Any]
    weights: Weights
    prefix: str
    run: Path

    @property
    def in_checkpoint(self) -> bool:
        """Whether this is a checkpoint, which of a LoRA has the factors alone."""
        return self.prefix != ""

    @property
    def kept_in(self) -> Path:
        """The folder that has pruning.json where blocks were taken out of the student."""
        return self.run if self.in_checkpoint else self.place

    def base(self, teacher: Teacher) -> nn.Module:
        """The frozen network that a checkpoint's LoRA was trained on; ValueError where it is gone."""
        init = (self.card.get("config") or {}).get("init")
        if init is None:
            return teacher.denoiser.network
        if not Path(init).is_dir():
            raise ValueError(
                f"no student at {init}, from which the LoRA in {self.place} was started; export runs/<run>/student, or "
                "bring it back"
            )
        return teacher.load_network(Path(init))

    @property
    def tuned(self) -> bool:
        """Whether the student is its teacher tuned by a reward, which keeps the teacher's guidance."""
        configured = ((self.card.get("config") or {}).get("student") or {}).get("guided", False)
        return bool(self.card.get("guided", configured))

    def own_lora(self) -> dict[str, Tensor]:
        """The factors that the student was trained as, by diffusers' names; none where all its weights were trained."""
        from safetensors.torch import load_file

        from dollar.models.adapter import factors
        from dollar.models.lora import FILE

        if self.in_checkpoint:
            inside = [n for n in self.weights.files if n.startswith(self.prefix)]
            return factors({n.removeprefix(self.prefix): self.weights.read(n) for n in inside if ".lora_" in n})
        if not (self.place / FILE).is_file() or not self.card.get("lora_beside", True):
            return {}
        return {n.removeprefix("transformer."): t for n, t in load_file(self.place / FILE).items()}


def source_of(place: Path, weights: str) -> StudentSource:
    """The student that a folder holds; ValueError says what is missing or damaged."""
    from dollar.export.student import CARD, read_card, student_weights
    from dollar.parallel import checkpoint

    if not place.exists():
        raise ValueError(f"checkpoint={place}: there is no such folder; a run's is runs/<run>")
    student = next((p for p in (place, place / "student") if (p / CARD).is_file()), None)
    if student is not None and (student == place or weights == "ema"):
        if weights != "ema":
            raise ValueError(
                f"weights={weights}, but the student in {place} has the averaged ones alone; use weights=ema, or name "
                "a checkpoint, as runs/<run>/checkpoints"
            )
        return StudentSource(student, read_card(student), student_weights(student), "", student.resolve().parent)
    step = place if (place / checkpoint.MANIFEST).is_file() or place.name.startswith("step-") else None
    for folder in (place / "checkpoints", place):
        step = step or checkpoint.newest(folder)
    if step is None:
        raise ValueError(
            f"checkpoint={place} holds neither a student nor a checkpoint; a run has them in runs/<run>/student and "
            "runs/<run>/checkpoints"
        )
    return _of_checkpoint(step, weights)


def _of_checkpoint(step: Path, weights: str) -> StudentSource:
    """A checkpoint's student, of which only the names are read yet."""
    from dollar.models.pipeline import Weights
    from dollar.parallel import checkpoint

    if trouble := checkpoint.fault(step):
        raise ValueError(f"the checkpoint {step} is damaged: {trouble}. Name an older one")
    plain = json.loads((step / checkpoint.PLAIN).read_text())
    if "config" not in plain:
        raise ValueError(
            f"the checkpoint {step} doesn't say how it was trained, as those in runs/<run>/checkpoints do; name one"
        )
    config = plain["config"]
    card = {
        "cycle": plain["cycle"],
        "trained": plain["cycle"],
        "parameterization": config["student"].get("parameterization", "homogeneous"),
        "teacher": config["teacher"],
        **places_of(step.resolve().parents[1]),
        "config": config,
        "teacher_name": config["teacher"]["name"],
        **{key: config["student"][key] for key in ("timesteps", "steps", "between")},
    }
    return StudentSource(step, card, Weights.of([step / checkpoint.TENSORS]), KINDS[weights], step.resolve().parents[1])


def places_of(run: Path) -> dict[str, Any]:
    """What a run's folder keeps of its places, as a student's card has it."""
    try:
        return {"places": json.loads((run / "places.json").read_text(encoding="utf-8"))["places"]}
    except (OSError, ValueError, TypeError, KeyError):  # a run of before there was any
        return {}


def check_source(source: StudentSource, is_lora: bool, steps: int | None, rank: int | None, full: bool) -> None:
    """Raise ValueError for a step count that the student was not trained for, or a LoRA that it doesn't have.

    is_lora: whether the student was trained as one; rank: of one to extract.
    """
    from dollar.models.pruned import read_pruning

    trained = source.card["steps"]
    if (rank is not None or not full) and read_pruning(source.kept_in) is not None:
        raise ValueError(
            f"{f'lora is {rank}' if rank is not None else 'full=false writes a LoRA alone'}, but blocks were taken "
            f"out of the student in {source.place}, so no LoRA of its whole teacher leads to it; set lora=null "
            "full=true"
        )
    if is_lora and rank is not None:
        raise ValueError(
            f"lora is {rank}, but the student in {source.place} is a LoRA, which is exported; set lora=null"
        )
    if not is_lora and rank is None and not full:
        raise ValueError("full=false writes the LoRA alone, but lora is null; give its rank, as lora=64")
    if not full and source.card.get("teacher", {}).get("lora") is not None:
        raise ValueError(
            f"full=false writes a LoRA of the plain teacher, but this one had {source.card['teacher']['lora']} merged; "
            "export the whole pipeline"
        )
    if steps is not None and steps not in trained:
        raise ValueError(
            f"steps is {steps}, but the student in {source.place} was trained for "
            f"{' or '.join(map(str, sorted(trained, reverse=True)))}; use one of these"
        )
    if not isinstance(source.card.get("teacher"), dict):
        raise ValueError(f"the student in {source.place} doesn't say which teacher made it; train it again")
