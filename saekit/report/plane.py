"""For data of two dimensions: where reconstruction moves the plane. A denoising autoencoder's
arrows point to where the data are dense: divided by the noise's variance they estimate the gradient
of the log density (saekit.measures.denoising.score_estimate)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from saekit.evaluation.passes import SampleOutput
from saekit.measures.denoising import vector_field
from saekit.report.charts import field
from saekit.report.page import Panel, figure, grid, note
from saekit.types import ActivationSpec

SIDE = 20  # arrows along each axis
POINTS = 500  # of the data, drawn under the arrows


@torch.no_grad()
def plane_panel(outputs: Sequence[SampleOutput], spec: ActivationSpec) -> Panel | None:
    """None where rows are not points of a plane."""
    if spec.d_in != 2 or spec.layout != "flat":
        return None
    items = []
    for output in outputs:
        if output.evaluated.target is not None:
            continue
        x = output.sample.x
        low, high = (tuple(values.tolist()) for values in (x.min(0).values, x.max(0).values))
        points, vectors = vector_field(
            lambda p, model=output.evaluated.model: model(p).x_hat, low, high, SIDE
        )
        items.append(figure(field(points, vectors, output.evaluated.name, x[:POINTS])))
    text = (
        "Dots are rows; an arrow is g(f(x)) - x: where reconstruction moves that point. All"
        " arrows of a chart have one scale."
    )
    return Panel("Vector field", note(text) + grid(items))
