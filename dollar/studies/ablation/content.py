"""What the ablation on the shapes world adds to the engine of studies."""

from dollar.studies.ablation.document import LAYOUT
from dollar.studies.ablation.figures import FIGURES, PURSUED, measured, measured_teacher
from dollar.studies.ablation.plots import plots
from dollar.studies.ablation.questions import questions
from dollar.studies.content import Content

ABLATION = Content(
    name="ablation",
    rewards={figure: FIGURES[figure][-1] for figure in PURSUED},
    usual="clip",
    measured=measured,
    measured_teacher=measured_teacher,
    layout=LAYOUT,
    plots=plots,
    questions=questions,
)
