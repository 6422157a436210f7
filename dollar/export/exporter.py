"""One student on its way into a folder of its own: the network, what diffusers must make of it, and the files."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dollar.export import pipeline
from dollar.export.folder import check_space
from dollar.export.lora import ALONG_LORA, lora_of, write_lora
from dollar.export.model_card import Facts, model_card
from dollar.export.pruned import dense
from dollar.export.source import StudentSource
from dollar.export.student import CARD, denoiser_of, few_steps, prediction_of, weights_of
from dollar.models.assemble import DTYPES
from dollar.models.teacher import Teacher


@dataclass(frozen=True)
class ExportSettings:
    """How a student is exported: the keys of conf/export.yaml, and what else a folder must say.

    switches: methods of the autoencoder to call before sampling; card: the student's, with all places by name, as it
    may leave this machine; configuration: the training's of that, as yaml, for the model card; choices: the names that
    conf/ offers for `teacher` and `loss`.
    """

    weights: str
    steps: int | None
    form: str
    dtype: str
    max_shard_size: str
    link: bool
    lora: int | None
    lora_names: str
    full: bool
    license: str | None
    verify: bool
    prompt: str
    seed: int
    switches: list[str]
    card: Mapping[str, Any]
    configuration: str
    choices: Mapping[str, Collection[str]]


class Exporter:
    """A student with the values that will be stored, read once the teacher suits it and the disk has room.

    lora: the factors that the student was trained as, if any. ValueError for a student that the teacher doesn't suit.
    """

    def __init__(
        self, source: StudentSource, lora: Mapping[str, Tensor], teacher: Teacher, settings: ExportSettings, out: Path
    ) -> None:
        card = source.card
        self.source, self.teacher, self.settings = source, teacher, settings
        self.dtype, self.steps = DTYPES[settings.dtype], settings.steps or max(card["steps"])
        self.parameterization = card.get("parameterization", "homogeneous")
        samplers = few_steps(teacher, card["timesteps"], card["steps"], card["between"])
        self.samplers = pipeline.served(teacher, samplers, self.steps)
        self.prediction = prediction_of(teacher, self.parameterization)
        teacher.check_prediction(self.prediction)
        self.left = self.pruning = teacher.pruning(source.kept_in)
        if settings.full:
            needed = pipeline.needed_bytes(teacher, self.dtype, settings.link, self.pruning)
            check_space(out, needed, settings.link)
        if lora and source.in_checkpoint:
            self.network = pipeline.merge_lora(teacher, source.base(teacher), lora, self.pruning)
        else:
            self.network = pipeline.read_network(teacher, source.weights, source.prefix, self.pruning)
        if settings.form == "dense":
            self.network, self.pruning = dense(teacher, self.network, self.pruning)
        pipeline.round_to(self.network, self.dtype)  # what is stored is what is compared
        # Of a pruned student there is no plain teacher that a LoRA could be added to.
        self.lora = None if self.left.is_less else lora_of(lora, teacher, self.network, settings.lora, self.dtype)
        self.calls = {count: pipeline.call_of(teacher, count, source.tuned) for count in self.samplers}

    def expected(self) -> pipeline.Expected:
        """The clips of our own sampler, by step count, and how far diffusers' may lie from them."""
        return self._clips_of(self.network)

    def expected_lora(self) -> pipeline.Expected | None:
        """The clips of the plain teacher with the LoRA merged; None where there is none to compare.

        A LoRA of a teacher that has another one merged is of no plain teacher. The student's network goes, so that one
        of its size is held at a time.
        """
        if self.lora is None or (self.teacher_has_lora and not self.lora.extracted):
            return None
        del self.network
        cls = self.teacher.family.classes["transformer"]
        base = self.teacher.family.network(self.teacher.pipeline.read("transformer", cls)).to(self.teacher.device)
        tensors = {name: factor.float().to(self.teacher.device) for name, factor in self.lora.tensors.items()}
        found = self._clips_of(pipeline.merge_lora(self.teacher, base, tensors))
        return found._replace(most=max(found.most, ALONG_LORA))

    @property
    def is_slim(self) -> bool:
        """Whether halves of blocks are gone from what is written, which diffusers can't read."""
        return bool(self.pruning.halves)

    def read_back(self, folder: Path, expected: pipeline.Expected) -> str:
        """Compare the clips of what was written, as this package reads it, with those expected.

        Returns a line of what was found; ValueError where they differ.
        """
        network = self.teacher.load_network(folder)
        for steps, found in self._clips_of(network).clips.items():
            if (gap := pipeline.Difference.between(expected.clips[steps], found)).latent > 0:
                raise ValueError(
                    f"what was written makes another clip in {steps} steps, latents differ by {gap.latent:.2g}. "
                    "Nothing was written; verify=false writes it all the same"
                )
        return "read back by this package, for diffusers has no half blocks: latents and frames are equal to the bit"

    @property
    def teacher_has_lora(self) -> bool:
        """Whether the student's teacher had a LoRA merged into it."""
        return (self.source.card.get("teacher") or {}).get("lora") is not None

    def _clips_of(self, network: nn.Module) -> pipeline.Expected:
        teacher, how, tuned = self.teacher, self.settings, self.source.tuned
        longest = self.samplers[self.steps]
        student = denoiser_of(teacher, network, longest, self.parameterization, DTYPES["float32"])
        pipeline.settle(network, teacher.codec.vae, *teacher.text.models)
        ours = {
            count: pipeline.by_us(teacher, student, few_step, how.prompt, how.seed, tuned)
            for count, few_step in self.samplers.items()
        }
        most = pipeline.allowed(self.prediction, longest.between, teacher.device)
        if tuned:  # a pipeline may run guidance's two evaluations one by one, which rounds otherwise
            most = max(most, pipeline.ALONG_VELOCITY)
        return pipeline.Expected(ours, self.calls, how.prompt, how.seed, most)

    def write(self, folder: Path) -> None:
        """Write the scheduler, the LoRA if any, the model card and the pipeline; the network is left in its dtype."""
        how, teacher = self.settings, self.teacher
        teacher.save_scheduler(folder, self.samplers[self.steps], self.prediction)
        if self.lora is not None:
            write_lora(folder, self.lora, teacher.family, self.network, how.lora_names)
        (folder / "README.md").write_text(model_card(self._facts(folder)), encoding="utf-8")
        if how.full:
            (folder / CARD).write_text(json.dumps(self._student_card(), indent=1))
            if self.pruning.is_less:
                self.pruning.write(folder)
            pipeline.write_pipeline(folder, teacher, self.network, self.dtype, how.max_shard_size, how.link)

    def _student_card(self) -> dict[str, object]:
        """student.json, by which launch/sample.py samples the export with the step counts of its scheduler."""
        longest = self.samplers[max(self.samplers)]
        own = {"timesteps": list(longest.configured), "steps": list(self.samplers), "guided": self.source.tuned}
        if self.lora is not None and (self.lora.extracted or self.settings.lora_names != "diffusers"):
            own["lora_beside"] = False  # the file beside it is not what was trained, by names that are read back
        return {**self.settings.card, **own}

    def _facts(self, folder: Path) -> Facts:
        """What the model card says."""
        how, teacher, source = self.settings, self.teacher, self.source
        longest = self.samplers[max(self.samplers)]
        lrm = ((source.card.get("config") or {}).get("lrm") or {}).get("path")
        frames, height, width = teacher.clip_shape
        scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
        return Facts(
            card={**how.card, "timesteps": list(longest.configured), "scheduler": scheduler},
            teacher_folder=teacher.folder,
            pipeline_class=teacher.family.pipeline_class,
            calls=self.calls,
            times=longest.schedule.thousandths(longest.times).tolist(),
            clip=f"{frames} frames of {height}x{width} pixels, {teacher.fps:g} a second",
            switches=how.switches,
            embeds_guidance=teacher.family.embeds_guidance,
            tuned=source.tuned,
            dtype=how.dtype,
            averaged=how.weights == "ema",
            run=source.run,
            weights=None if source.in_checkpoint else weights_of(source.place),
            lrm=None if lrm is None else Path(lrm),
            lora=None if self.lora is None else self.lora.described,
            full=how.full,
            licence=how.license,
            prompt=how.prompt,
            seed=how.seed,
            configuration=how.configuration,
            choices=how.choices,
            pruned=self.left.described if self.left.is_less else None,
            slim=self.is_slim,
        )
