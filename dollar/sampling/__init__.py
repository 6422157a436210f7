"""Clips from a teacher or a student: samplers, files of clips, and the manifest of a folder of them."""

from dollar.sampling.files import ClipFolder, Request, batches, requests, write_clips
from dollar.sampling.manifest import Manifest
from dollar.sampling.samplers import (
    Sampler,
    decode,
    generators,
    make_clips,
    make_latents,
    student_sampler,
    teacher_sampler,
)

__all__ = [
    "ClipFolder",
    "Manifest",
    "Request",
    "Sampler",
    "batches",
    "decode",
    "generators",
    "make_clips",
    "make_latents",
    "requests",
    "student_sampler",
    "teacher_sampler",
    "write_clips",
]
