"""The sections of a report on images: reconstructions, denoising, filters, samples of a variational
decoder, maps of a U-Net, masks.

Rows are images where a flat raw store has their shape (H,W,C); values are shown as they are,
clipped to [0, 1].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saekit.evaluation.models import EvaluatedModel
from saekit.evaluation.passes import SampleOutput, outputs_of
from saekit.measures.denoising import psnr
from saekit.measures.generation import active_units, interpolate, samples, traverse
from saekit.measures.segmentation import iou
from saekit.models.metrics import METRICS
from saekit.models.noise import Noise
from saekit.models.unet import UNet
from saekit.models.vae import VAE
from saekit.report.images import sheet
from saekit.report.page import Panel, figure, note, picture, pictures, versions
from saekit.types import ActivationBatch, ActivationSpec

EXAMPLES, FILTERS, DRAWS, STEPS, TRAVERSED, MAPS = 10, 32, 40, 10, 4, 8
ON_SCREEN = 56  # small images are enlarged to at least so many pixels
REACH = 3.0  # a latent is varied by so many standard deviations of the prior to either side


def image_shape(spec: ActivationSpec, width: int) -> tuple[int, int, int] | None:
    """(H,W,C) of rows of this width that belong to the store's images; None where they are not
    pictures."""
    if not (spec.is_raw and spec.layout == "flat" and len(spec.shape) == 3):
        return None
    H, W, _ = spec.shape
    if H is None or W is None:
        return None
    C, rest = divmod(width, H * W)
    return (H, W, C) if rest == 0 and C in (1, 3) else None


def chosen_examples(labels: Sequence[str | None], count: int = EXAMPLES) -> list[int]:
    """Indices of `count` rows: the first of each label, in the order of the labels, then others in
    their own order."""
    first: dict[str, int] = {}
    for i, label in enumerate(labels):
        if label is not None:
            first.setdefault(label, i)
    chosen = [first[label] for label in sorted(first, key=lambda label: (len(label), label))][
        :count
    ]
    rest = [i for i in range(len(labels)) if i not in set(chosen)]
    return chosen + rest[: count - len(chosen)]


def reconstructions_panel(outputs: Sequence[SampleOutput], spec: ActivationSpec) -> Panel | None:
    """The same examples through every model, under their inputs and targets."""
    rows, targets = [], set()
    for output in outputs:
        evaluated, shown = output.evaluated, _images(output, output.x_hat, spec)
        if shown is None:
            continue
        # inputs come first, a target before the first model that reconstructs it
        target = evaluated.target.path if evaluated.target else None
        if target not in targets:
            targets.add(target)
            if not rows or target is not None:
                inputs = _images(output, output.sample.x, spec)
                rows.append(("input", "", "", _strip(inputs, "examples")))
            if target is not None:
                images = _images(output, output.sample.target, spec)
                strip = _strip(images, "what the model is to reconstruct")
                rows.append(("target", Path(target).name, "", strip))
        fvu = f"fvu {METRICS['fvu'].text(_fvu(output))}"
        strip = _strip(shown, f"as {evaluated.name} reconstructs them")
        rows.append((evaluated.name, fvu, evaluated.role, strip))
    if not rows:
        return None
    labels = any(label is not None for label in outputs[0].sample.labels)
    text = (
        f"The same examples through every model{', the first of each label' if labels else ''};"
        f" none was chosen by eye. fvu is of {len(outputs[0].errors):,} such examples."
    )
    return Panel("Reconstructions", note(text) + versions(rows))


def _fvu(output: SampleOutput) -> float:
    target = output.sample.target.double()
    return float(output.errors.sum() / (target - target.mean(0)).square().sum())


def denoising_panel(
    outputs: Sequence[SampleOutput], spec: ActivationSpec, seed: int
) -> Panel | None:
    """Runs that were trained with noise, on examples with noise of the same kind."""
    rows, numbers = [], {}
    for output in outputs:
        evaluated, x = output.evaluated, output.sample.x
        noise = Noise.parse(getattr(_config(evaluated), "noise", ""))
        if not noise.kind or evaluated.target or image_shape(spec, x.shape[1]) is None:
            continue
        noisy, denoised = _denoised(output, noise, seed)
        before, after = psnr(x, noisy), psnr(x, denoised)
        numbers[evaluated.name] = {
            "noise": f"{noise.kind}:{noise.level:g}",
            "noisy_psnr": before,
            "denoised_psnr": after,
        }
        name, kind = evaluated.name, f"{noise.kind} {noise.level:g}"
        strips = [
            _strip(_images(output, images, spec), alt)
            for images, alt in (
                (x, "clean examples"),
                (noisy, "with noise"),
                (denoised, f"denoised by {name}"),
            )
        ]
        rows += [
            ("clean", "", "", strips[0]),
            (kind, f"{before:.1f} dB", "", strips[1]),
            (name, f"{after:.1f} dB", "run", strips[2]),
        ]
    if not rows:
        return None
    text = (
        "Runs that were trained with noise, on examples with noise of the same kind. PSNR is over"
        " the whole sample, peak 1."
    )
    return Panel("Denoising", note(text) + versions(rows), {"denoising": numbers})


def _config(evaluated: EvaluatedModel) -> Any:
    """The config of a run's model; None for controls, some of which have none."""
    return evaluated.model.config if evaluated.role == "run" else None


def _denoised(output: SampleOutput, noise: Noise, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(noisy, denoised). Training adds noise to the normalized input, and so does this."""
    model: Any = output.evaluated.model
    batch = output.sample.batch
    normal = (output.sample.x - model.input_mean) * model.input_scale
    noisy = noise(normal, torch.Generator().manual_seed(seed))
    noisy = noisy / model.input_scale + model.input_mean
    shown = ActivationBatch(noisy, batch.doc_id, batch.example_id, batch.position)
    return noisy, outputs_of(model, shown)[0]


def filters_panel(outputs: Sequence[SampleOutput], spec: ActivationSpec) -> Panel | None:
    """Decoder rows of runs as pictures, those in most use first."""
    items = []
    for output in outputs:
        evaluated = output.evaluated
        W = getattr(evaluated.model, "W_dec", None)
        shape = None if W is None else image_shape(spec, W.shape[1])
        if W is None or shape is None or evaluated.role != "run":
            continue
        W = W.detach()
        order = _use(output, W).argsort(descending=True, stable=True)[:FILTERS]
        scale = W[order].abs().amax(1, keepdim=True).clamp_min(1e-12)
        tiles = (0.5 + 0.5 * W[order] / scale).reshape(-1, *shape)
        sparse = evaluated.model.active_above is not None
        use = (
            "the share of rows that activate them"
            if sparse
            else "their share of the output's variance"
        )
        caption = f"{evaluated.name}: {len(order)} of {len(W):,} by {use}"
        items.append(figure(picture(sheet(tiles, 8, zoom=_zoom(shape[1])), caption), caption))
    text = (
        "Decoder rows as pictures: what a latent adds to the output. Mid gray is zero; each picture"
        " is scaled to its own largest value."
    )
    return Panel("Filters", note(text) + pictures(items)) if items else None


def _use(output: SampleOutput, W_FD: torch.Tensor) -> torch.Tensor:
    """(F,): share of rows that activate a sparse latent; of a dense one, its variance times the
    square norm of its decoder row."""
    codes, above = output.codes, output.evaluated.model.active_above
    if above is not None:
        # saekit.models.metrics.fires, of a matrix or a sparse one
        active = np.asarray((abs(codes) > above).sum(0), np.float64).reshape(-1)
        return torch.from_numpy(active) / len(output.sample.labels)
    return torch.from_numpy(np.asarray(codes, np.float64).var(0)) * W_FD.double().square().sum(1)


def variational_panel(
    outputs: Sequence[SampleOutput], spec: ActivationSpec, seed: int
) -> Panel | None:
    """What the decoders of VAEs make of codes that do not come from rows."""
    html, numbers = "", {}
    for output in outputs:
        model, name = output.evaluated.model, output.evaluated.name
        if not isinstance(model, VAE) or output.evaluated.role != "run":
            continue
        means = torch.from_numpy(np.asarray(output.codes))
        active = active_units(means)
        numbers[name] = {"active_units": len(active), "latents": model.latents}
        text = (
            f"{len(active)} of {model.latents} latents are active: the mean of the code varies by"
            " more than 0.01 over the rows."
        )
        html += f"<h3>{escape(name)}</h3>{note(text)}"
        html += _drawn(output, model, means, active, spec, seed)
    text = "What the decoder makes of codes that do not come from rows."
    return Panel("Variational", note(text) + html, {"variational": numbers}) if html else None


def _drawn(
    output: SampleOutput,
    model: VAE,
    means: torch.Tensor,
    active: torch.Tensor,
    spec: ActivationSpec,
    seed: int,
) -> str:
    """Samples, a path between two examples, and traversals of the most varied latents."""
    shape = image_shape(spec, model.d_out)
    if shape is None:
        return ""

    def drawn(x: torch.Tensor, alt: str, caption: str) -> str:
        tiles = sheet(x.reshape(-1, *shape), STEPS, zoom=_zoom(shape[1]))
        return figure(picture(tiles, alt), caption)

    # from the prior
    x = samples(model.decode, DRAWS, model.latents, torch.Generator().manual_seed(seed))
    items = [drawn(x, "samples", f"{DRAWS} samples from the prior, N(0, I)")]

    # between two examples
    first, last = 0, len(means) - 1
    if len(means) >= EXAMPLES:
        first, last = chosen_examples(output.sample.labels)[:: EXAMPLES - 1][:2]
    x = interpolate(model.decode, means[first], means[last], STEPS)
    caption = "from the code of one example to that of another, in even steps"
    items.append(drawn(x, "interpolation", caption))

    # one latent at a time
    others = [latent for latent in range(model.latents) if latent not in set(active.tolist())]
    latents = [*active.tolist(), *others][:TRAVERSED]
    values = torch.linspace(-REACH, REACH, STEPS)
    x = torch.cat([traverse(model.decode, means[first], latent, values) for latent in latents])
    caption = (
        f"latents {', '.join(map(str, latents))} (the most varied), one per row, varied from"
        f" −{REACH:g} to {REACH:g}"
    )
    items.append(drawn(x, "traversal", caption))
    return pictures(items)


def levels_panel(outputs: Sequence[SampleOutput], spec: ActivationSpec) -> Panel | None:
    """Maps of a U-Net for one example."""
    html = ""
    for output in outputs:
        model = output.evaluated.model
        if not isinstance(model, UNet) or output.evaluated.role != "run":
            continue
        x = output.sample.x[chosen_examples(output.sample.labels)[:1]]
        side = model.sides[0][1]
        rows = []
        for name, maps_1Chw in model.maps(x).items():
            maps = maps_1Chw[0, :MAPS]
            low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
            tiles = (maps - low) / (high - low).clamp_min(1e-12)
            strip = sheet(tiles, MAPS, zoom=max(_zoom(side) * side // maps.shape[2], 1))
            small = f"{maps_1Chw.shape[1]} maps of {maps.shape[1]}×{maps.shape[2]}"
            rows.append((name, small, "", picture(strip, f"maps of {name}")))
        html += f"<h3>{escape(output.evaluated.name)}</h3>{versions(rows)}"
    text = (
        f"The first {MAPS} maps of every level for one example, from the finest down and up again;"
        " each from black to white."
    )
    return Panel("Levels", note(text) + html) if html else None


def masks_panel(outputs: Sequence[SampleOutput], spec: ActivationSpec) -> Panel | None:
    """Runs whose target holds only 0 and 1."""
    rows, numbers = [], {}
    for output in outputs:
        evaluated, truth = output.evaluated, output.sample.target
        if evaluated.target is None or not ((truth == 0) | (truth == 1)).all():
            continue
        score = iou(output.x_hat, truth)
        numbers[evaluated.name] = dataclasses.asdict(score)
        masks = _images(output, truth, spec)
        if masks is None:
            continue
        if not rows:
            inputs = _images(output, output.sample.x, spec)
            rows = [
                ("input", "", "", _strip(inputs, "inputs")),
                ("mask", "", "", _strip(masks, "masks")),
            ]
        predicted = _images(output, (output.x_hat > 0.5).float(), spec)
        small = f"IoU {score.pooled:.3f} pooled, {score.mean:.3f} per image"
        strip = _strip(predicted, f"mask by {evaluated.name}")
        rows.append((evaluated.name, small, evaluated.role, strip))
    text = (
        "Output above 0.5 and the true mask. IoU: values in both masks over values in either, of"
        " the whole sample."
    )
    return (
        Panel("Masks", note(text) + versions(rows), {"segmentation": numbers}) if numbers else None
    )


def _images(output: SampleOutput, x: torch.Tensor, spec: ActivationSpec) -> torch.Tensor | None:
    """(N,H,W,C) of the chosen examples; None where rows are not pictures."""
    shape = image_shape(spec, x.shape[-1]) if x.dim() == 2 else None
    return None if shape is None else x[chosen_examples(output.sample.labels)].reshape(-1, *shape)


def _strip(images: torch.Tensor | None, alt: str) -> str:
    if images is None:
        return ""
    return picture(sheet(images, EXAMPLES, zoom=_zoom(images.shape[2])), alt)


def _zoom(width: int) -> int:
    return max(-(-ON_SCREEN // width), 1)
