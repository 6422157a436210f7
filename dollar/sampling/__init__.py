"""Clips from a teacher or a student: samplers, files of clips, and the manifest of a folder of them."""

from dollar.sampling.files import Request, requests, write_clips
from dollar.sampling.manifest import list_clips, write_manifest
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
    "Request",
    "Sampler",
    "decode",
    "generators",
    "list_clips",
    "make_clips",
    "make_latents",
    "requests",
    "student_sampler",
    "teacher_sampler",
    "write_clips",
    "write_manifest",
]
