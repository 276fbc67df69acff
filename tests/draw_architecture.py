"""The picture of the flow in `fxperex/docs/architecture.md`: `python tests/draw_architecture.py`
writes it.

Values stand in the middle, from top to bottom, in the order in which a step comes to be. Beside an
arrow are the stage and its folder; beside that, the rooms that the stage asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fxperex.report.canvas import Arrow, Canvas, Rect, Text, svg

PICTURE = Path(__file__).parents[1] / "fxperex" / "docs" / "architecture.svg"
VALUE, STAGE, ROOM = "#dcebf7", "#f7ecd2", "#eeeeee"
LEFT, WIDTH, HEIGHT, STEP = 20.0, 330.0, 40.0, 90.0
ASKED, ASKED_WIDTH = 420.0, 420.0


@dataclass(frozen=True)
class Arrival:
    """A value, what it holds, the stage that returns it, and the rooms that this stage asks."""

    value: str
    holds: str
    stage: str = ""
    folder: str = ""
    asks: str = ""


FLOW = (
    Arrival("model, loss, batch", "the user's own; never patched"),
    Arrival("Capture", "one functional ATen graph, at two batch sizes", "capture", "capture/",
            "torch.export"),
    Arrival("axes", "where the examples are in every tensor", "prove", "analysis/",
            "analysis/rules/: one rule for each operation"),
    Arrival("Analysis", "the sites: a parameter meets the batch", "find_sites", "analysis/",
            "layers/: which kind of layer claims a node"),
    Arrival("Plan", "a strategy for every site, and why", "plan", "planner/",
            "strategies/, cost_model/, devices/, memory/"),
    Arrival("StepGraph", "losses, norms, factors, weighted sums", "rewrite", "rewrite/",
            "strategies/, layers/, kernels/, numerics/, clipping"),
    Arrival("compiled step", "compared with the eager graph first", "compile", "compiler/",
            "Inductor, CUDA graphs, Triton"),
    Arrival("PerExampleModule", "any number of rows: pad, mask, run", "PerExampleModule",
            "runtime/", "save and load, plan and picture: report/"),
    Arrival("StepResult, clipped sums", "step adds them to .grad; sums only returns them", "step",
            "runtime/", "gradients and buffers: all written, or none"),
    Arrival("private parameters", "debit, sample, noise once, update", "PrivacyEngine", "privacy/",
            "sampling/, noise/, records/, the accountant"),
)


def picture() -> Canvas:
    """Returns the canvas of the whole flow."""
    canvas = Canvas()
    for place, arrival in enumerate(FLOW):
        y = 20.0 + place * STEP
        canvas.add(Rect(LEFT, y, WIDTH, HEIGHT, VALUE),
                   Text(LEFT + 12, y + 17, arrival.value, 13.0, bold=True),
                   Text(LEFT + 12, y + 33, arrival.holds, 11.0))
        if arrival.stage:
            _arrow(canvas, arrival, y)
    return canvas


def _arrow(canvas: Canvas, arrival: Arrival, y: float) -> None:
    middle, centre = LEFT + WIDTH / 2, y - (STEP - HEIGHT) / 2
    canvas.add(Arrow(((middle, y - STEP + HEIGHT), (middle, y))))
    text = f"{arrival.stage}: {arrival.folder}"
    canvas.add(Rect(middle - 105, centre - 12, 210, 24, STAGE),
               Text(middle, centre + 4, text, 12.0, "middle", bold=True))
    canvas.add(Rect(ASKED, centre - 12, ASKED_WIDTH, 24, ROOM),
               Text(ASKED + 12, centre + 4, arrival.asks, 12.0))
    canvas.add(Arrow(((ASKED, centre), (middle + 105, centre))))


if __name__ == "__main__":
    PICTURE.write_text(svg(picture()))
