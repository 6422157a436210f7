"""A student as a folder for others, and as our own samplers read it."""

from typing import TYPE_CHECKING

from dollar.lazy import lazily

if TYPE_CHECKING:
    from dollar.export.exporter import Exporter, ExportSettings
    from dollar.export.folder import whole_folder
    from dollar.export.pipeline import verify
    from dollar.export.source import StudentSource, source_of
    from dollar.export.student import Student, few_steps, load_student, read_card, save_student
else:
    __getattr__, __dir__ = lazily(__name__)

__all__ = [
    "ExportSettings",
    "Exporter",
    "Student",
    "StudentSource",
    "few_steps",
    "load_student",
    "read_card",
    "save_student",
    "source_of",
    "verify",
    "whole_folder",
]
