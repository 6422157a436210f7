"""The one loop, learners, their average, monitors, watch, log and validation."""

from dollar.training.average import Average
from dollar.training.learner import Learner
from dollar.training.loop import Loop, Timetable
from dollar.training.monitors.monitor import Monitor, Verdict
from dollar.training.turn import Method, Moment, NoUpdate, Pullback, Turn

__all__ = [
    "Average",
    "Learner",
    "Loop",
    "Method",
    "Moment",
    "Monitor",
    "NoUpdate",
    "Pullback",
    "Timetable",
    "Turn",
    "Verdict",
]
