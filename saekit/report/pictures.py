"""The sections of a report on images: reconstructions, denoising, filters, what a variational
decoder draws, maps of a U-Net, masks.

Rows are images where a flat raw store knows their shape (H,W,C); values are shown as they are,
clipped to [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saekit.evaluation.passes import Look, outputs_of
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
ON_SCREEN = 56  # pixels that an image is at least wide on the page, where it is small
REACH = 3.0  # standard deviations of the prior that a latent is turned through, to either side


def image_shape(spec: ActivationSpec, width: int) -> tuple[int, int, int] | None:
    """(H,W,C) of rows of this width beside the store's; None where they are no pictures."""
    if not (spec.is_raw and spec.layout == "flat" and len(spec.shape) == 3):
        return None
    H, W, _ = spec.shape
    C, rest = divmod(width, H * W)
    return (H, W, C) if rest == 0 and C in (1, 3) else None


def chosen_examples(labels: Sequence[str | None], count: int = EXAMPLES) -> list[int]:
    """Indices of `count` rows, the first of each label in the labels' order, then others in
    theirs."""
    first: dict[str, int] = {}
    for i, label in enumerate(labels):
        if label is not None:
            first.setdefault(label, i)
    chosen = [first[label] for label in sorted(first, key=lambda label: (len(label), label))][
        :count
    ]
    rest = [i for i in range(len(labels)) if i not in set(chosen)]
    return chosen + rest[: count - len(chosen)]


def reconstructions_panel(looks: Sequence[Look], spec: ActivationSpec) -> Panel | None:
    rows, wanted_of = [], set()
    for look in looks:
        shown = _of(look, look.x_hat, spec)
        if shown is None:
            continue
        source = look.subject.target.path if look.subject.target else None
        if source not in wanted_of:
            wanted_of.add(source)
            if not rows or source is not None:
                rows.append(("input", "", "", _strip(_of(look, look.sample.x, spec), "examples")))
            if source is not None:
                rows.append(
                    (
                        "target",
                        Path(source).name,
                        "",
                        _strip(_of(look, look.sample.wanted, spec), "what the model is to give"),
                    )
                )
        rows.append(
            (
                look.subject.name,
                f"fvu {METRICS['fvu'].text(_fvu(look))}",
                look.subject.role,
                _strip(shown, f"as {look.subject.name} gives them"),
            )
        )
    labels = any(label is not None for label in looks[0].sample.labels)
    first = ", the first of each label" if labels else ""
    what = (
        f"The same examples through every model{first}; none was chosen for its looks. fvu is of"
        f" {len(looks[0].errors):,} such examples."
    )
    return Panel("Reconstructions", note(what) + versions(rows)) if rows else None


def _fvu(look: Look) -> float:
    wanted = look.sample.wanted.double()
    return float(look.errors.sum() / (wanted - wanted.mean(0)).square().sum())


def denoising_panel(looks: Sequence[Look], spec: ActivationSpec, seed: int) -> Panel | None:
    rows, found = [], {}
    for look in looks:
        noise = Noise.parse(getattr(_config(look), "noise", ""))
        if (
            not noise.kind
            or image_shape(spec, look.sample.x.shape[1]) is None
            or look.subject.target is not None
        ):
            continue
        noisy, denoised = _denoised(look, noise, seed)
        x, name = look.sample.x, look.subject.name
        found[name] = {
            "noise": f"{noise.kind}:{noise.level:g}",
            "noisy_psnr": psnr(x, noisy),
            "denoised_psnr": psnr(x, denoised),
        }
        rows += [
            ("clean", "", "", _strip(_of(look, x, spec), "clean examples")),
            (
                f"{noise.kind} {noise.level:g}",
                f"{found[name]['noisy_psnr']:.1f} dB",
                "",
                _strip(_of(look, noisy, spec), "with noise"),
            ),
            (
                name,
                f"{found[name]['denoised_psnr']:.1f} dB",
                "run",
                _strip(_of(look, denoised, spec), f"denoised by {name}"),
            ),
        ]
    what = (
        "Runs that were trained with noise, on examples with noise of the same kind. PSNR is over"
        " the whole sample, peak 1."
    )
    return Panel("Denoising", note(what) + versions(rows), {"denoising": found}) if rows else None


def _config(look: Look) -> Any:
    """The config of a run's model; None of controls, some of which have none."""
    return look.subject.model.config if look.subject.role == "run" else None


def _denoised(look: Look, noise: Noise, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(noisy, denoised). Training adds noise to the normalised input, so the same is done here."""
    model, batch = look.subject.model, look.sample.batch
    normal = (look.sample.x - model.input_mean) * model.input_scale
    noisy = (
        noise(normal, torch.Generator().manual_seed(seed)) / model.input_scale + model.input_mean
    )
    return (
        noisy,
        outputs_of(model, ActivationBatch(noisy, batch.doc_id, batch.example_id, batch.position))[
            0
        ],
    )


def filters_panel(looks: Sequence[Look], spec: ActivationSpec) -> Panel | None:
    items = []
    for look in looks:
        W = getattr(look.subject.model, "W_dec", None)
        shape = None if W is None else image_shape(spec, W.shape[1])
        if shape is None or look.subject.role != "run":
            continue
        W = W.detach()
        use = _use(look, W)
        order = use.argsort(descending=True, stable=True)[:FILTERS]
        scale = W[order].abs().amax(1, keepdim=True).clamp_min(1e-12)
        tiles = (0.5 + 0.5 * W[order] / scale).reshape(-1, *shape)
        kind = (
            "the share of rows that activate them"
            if look.subject.model.active_above is not None
            else "their share of the output's variance"
        )
        caption = f"{look.subject.name}: {len(order)} of {len(W):,} by {kind}"
        items.append(figure(picture(sheet(tiles, 8, zoom=_zoom(shape[1])), caption), caption))
    what = (
        "Decoder rows as pictures: what a latent adds to the output. Mid grey is zero; each is"
        " scaled to its own largest value."
    )
    return Panel("Filters", note(what) + pictures(items)) if items else None


def _use(look: Look, W_FD: torch.Tensor) -> torch.Tensor:
    """(F,): share of rows that activate a sparse latent; of a dense one, its variance times the
    square norm of its decoder row."""
    codes, above = look.codes, look.subject.model.active_above
    if above is not None:
        # saekit.models.metrics.fires, of a matrix or a sparse one
        active = (abs(codes) > above).sum(0)
        return torch.from_numpy(np.asarray(active, np.float64).reshape(-1)) / codes.shape[0]
    return torch.from_numpy(np.asarray(codes, np.float64).var(0)) * W_FD.double().square().sum(1)


def variational_panel(looks: Sequence[Look], spec: ActivationSpec, seed: int) -> Panel | None:
    html, found = "", {}
    for look in looks:
        model = look.subject.model
        if not isinstance(model, VAE) or look.subject.role != "run":
            continue
        means = torch.from_numpy(np.asarray(look.codes))
        active = active_units(means)
        found[look.subject.name] = {"active_units": len(active), "latents": model.latents}
        html += f"<h3>{escape(look.subject.name)}</h3>"
        html += note(
            f"{len(active)} of {model.latents} latents are active: the mean of the code varies by"
            " more than 0.01 over the rows."
        )
        html += _drawn(look, means, active, spec, seed)
    what = "What the decoder makes of codes that no row gave."
    return Panel("Variational", note(what) + html, {"variational": found}) if html else None


def _drawn(
    look: Look, means: torch.Tensor, active: torch.Tensor, spec: ActivationSpec, seed: int
) -> str:
    model, shape = look.subject.model, image_shape(spec, look.subject.model.d_out)
    if shape is None:
        return ""
    tile = lambda x: sheet(x.reshape(-1, *shape), STEPS, zoom=_zoom(shape[1]))
    drawn = samples(model.decode, DRAWS, model.latents, torch.Generator().manual_seed(seed))
    items = [figure(picture(tile(drawn), "samples"), f"{DRAWS} samples from the prior, N(0, I)")]
    first, last = (
        chosen_examples(look.sample.labels)[:: EXAMPLES - 1][:2]
        if len(means) >= EXAMPLES
        else (0, len(means) - 1)
    )
    path = interpolate(model.decode, means[first], means[last], STEPS)
    items.append(
        figure(
            picture(tile(path), "interpolation"),
            "from the code of one example to that of another, in even steps",
        )
    )
    order = [*active.tolist(), *(i for i in range(model.latents) if i not in set(active.tolist()))][
        :TRAVERSED
    ]
    turned = torch.cat(
        [
            traverse(model.decode, means[first], i, torch.linspace(-REACH, REACH, STEPS))
            for i in order
        ]
    )
    latents = ", ".join(map(str, order))
    items.append(
        figure(
            picture(tile(turned), "traversal"),
            f"latents {latents} (the most varied), a row each, turned from −{REACH:g} to {REACH:g}",
        )
    )
    return pictures(items)


def levels_panel(looks: Sequence[Look], spec: ActivationSpec) -> Panel | None:
    """Maps of a U-Net for one example."""
    html = ""
    for look in looks:
        if not isinstance(look.subject.model, UNet) or look.subject.role != "run":
            continue
        one = look.sample.x[chosen_examples(look.sample.labels)[:1]]
        rows = []
        for name, maps_1Chw in look.subject.model.maps(one).items():
            maps = maps_1Chw[0, :MAPS]
            low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
            side = look.subject.model.sides[0][1]
            strip = sheet(
                (maps - low) / (high - low).clamp_min(1e-12),
                MAPS,
                zoom=max(_zoom(side) * side // maps.shape[2], 1),
            )
            small = f"{maps_1Chw.shape[1]} maps of {maps.shape[1]}×{maps.shape[2]}"
            rows.append((name, small, "", picture(strip, f"maps of {name}")))
        html += f"<h3>{escape(look.subject.name)}</h3>{versions(rows)}"
    what = (
        f"The first {MAPS} maps of every level for one example, from the finest down and up again;"
        " each from black to white."
    )
    return Panel("Levels", note(what) + html) if html else None


def masks_panel(looks: Sequence[Look], spec: ActivationSpec) -> Panel | None:
    """Runs whose target holds 0 and 1 alone."""
    rows, found = [], {}
    for look in looks:
        truth = look.sample.wanted
        if look.subject.target is None or not ((truth == 0) | (truth == 1)).all():
            continue
        score = iou(look.x_hat, truth)
        found[look.subject.name] = {
            "pooled": score.pooled,
            "mean": score.mean,
            "images": score.images,
        }
        if _of(look, truth, spec) is None:
            continue
        if not rows:
            rows = [
                ("input", "", "", _strip(_of(look, look.sample.x, spec), "inputs")),
                ("mask", "", "", _strip(_of(look, truth, spec), "masks")),
            ]
        prediction = (look.x_hat > 0.5).float()
        small = f"IoU {score.pooled:.3f} pooled, {score.mean:.3f} an image"
        rows.append(
            (
                look.subject.name,
                small,
                look.subject.role,
                _strip(_of(look, prediction, spec), f"mask by {look.subject.name}"),
            )
        )
    what = (
        "Output above 0.5 beside the true mask. IoU: values in both masks over values in either, of"
        " the whole sample."
    )
    return Panel("Masks", note(what) + versions(rows), {"segmentation": found}) if found else None


def _of(look: Look, x: torch.Tensor, spec: ActivationSpec) -> torch.Tensor | None:
    """(N,H,W,C) of the chosen examples; None where rows are no pictures."""
    shape = image_shape(spec, x.shape[-1]) if x.dim() == 2 else None
    return None if shape is None else x[chosen_examples(look.sample.labels)].reshape(-1, *shape)


def _strip(images: torch.Tensor | None, alt: str) -> str:
    return (
        "" if images is None else picture(sheet(images, EXAMPLES, zoom=_zoom(images.shape[2])), alt)
    )


def _zoom(width: int) -> int:
    return max(-(-ON_SCREEN // width), 1)
