"""A dictionary whose code is the k largest values of a row, or of a batch, as one with a threshold:
the verb `convert`.

With a threshold the number of active latents follows the row, and other programs read such a
dictionary. All latents get the same threshold: the value that as many pre-activations of the
training rows exceed as were active before, so that the mean L0 stays. Weights do not change.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from saekit import typed
from saekit.errors import UsageError, check_choice, opt
from saekit.evaluation.models import open_runs
from saekit.evaluation.passes import chosen_batches
from saekit.interop.opening import open_checkpoint
from saekit.models.catalog import config_of, restore
from saekit.models.codes import firing_counts
from saekit.models.sae import SAE, SAEConfig
from saekit.models.sparsity import VARIANTS
from saekit.models.sparsity.batchtopk import LargestOfBatch
from saekit.models.sparsity.topk import LargestOfRows
from saekit.options import AnyStore, Doc, Overwrite
from saekit.rows import Rows
from saekit.store.checkpoint import write_checkpoint
from saekit.store.folder_kinds import RUN
from saekit.store.opening import RowsLike, open_rows
from saekit.store.run_folder import run_folder
from saekit.training.checkpoints import ModelLike, name_of, path_or_model
from saekit.training.fit import holdout_figures
from saekit.versions import versions

CONVERT = dataclasses.replace(RUN, verb="convert", done="converted", resumable=False)
ROWS = 65_536
VALUES = 2**25  # the largest pre-activations that are kept: 128 MB
CODE_NUMBERS = 2**24  # of dense pre-activations at once: 64 MB


@dataclass(frozen=True)
class ConvertResult:
    path: str
    """The checkpoint folder."""
    sparsity: str
    """Before."""
    to: str
    threshold: float
    """Of every latent; for a published dictionary with several, their mean."""
    rows: int
    """Training rows that the threshold was chosen on."""
    held_out_rows: int
    before: dict[str, float | None]
    """fvu and l0 on held-out rows."""
    after: dict[str, float | None]


def convert(
    checkpoint: Annotated[
        ModelLike,
        Doc("Checkpoint of a topk or batchtopk dictionary.", metavar="CKPT", positional=True),
    ],
    out: Annotated[
        str | Path, Doc("Folder for the new checkpoint.", metavar="OUT", positional=True)
    ],
    *,
    store: Annotated[
        RowsLike,
        Doc("Store folder. For a crosscoder, give those of its training.", metavar="STORE..."),
    ],
    to: Annotated[Literal["jumprelu"], Doc("What the code becomes.")] = "jumprelu",
    rows: Annotated[
        int | None,
        Doc(f"Training rows to choose the threshold on, at most (default: {ROWS:,})."),
    ] = None,
    target_store: Annotated[
        str | Path | None,
        Doc("Folder of the target store (default: where it was during training).", metavar="STORE"),
    ] = None,
    any_store: AnyStore = False,
    overwrite: Overwrite = False,
) -> ConvertResult:
    """Write a dictionary with a fixed number of active latents as one with a threshold and the same
    mean L0.

    >>> saekit.convert("runs/topk", "runs/jump", store="acts/text").after["fvu"]

    Parameters
        checkpoint: a checkpoint folder or a published dictionary: topk, batchtopk, and the variants
            that share their codes. A batchtopk has a threshold already, which stays.
        store: the rows: a path, a Store, or rows in memory. The threshold comes from its training
            rows, the figures before and after from its held-out rows.
        target_store, any_store: as in `evaluate`; the first is for a transcoder.

    Raises UsageError for a dictionary with another code or a model in memory, DataError and
    MissingError as `evaluate`.
    """
    check_choice("to", to, ("jumprelu",))
    if rows is not None and rows < 1:
        raise UsageError(f"{opt('rows', rows)} must be at least 1")
    source_path = path_or_model(checkpoint)
    if not isinstance(source_path, str):
        raise UsageError(
            f"{name_of(source_path)} is in memory, without a record of where it comes from",
            "give the folder of a checkpoint",
        )
    if Path(out).resolve() == Path(source_path).resolve():
        raise UsageError(f"OUT is the checkpoint itself: {out}", "choose another OUT")
    # the dictionary and its rows
    [run] = open_runs([source_path], open_rows(store), target_store, any_store)
    old = run.model
    if not isinstance(old, (LargestOfRows, LargestOfBatch)):
        raise _other_code(source_path, run.kind, getattr(old, "thresholded", False))
    if old.config.keep_negative:
        raise UsageError(
            f"{source_path} ({run.kind}) keeps negative values, which a jumprelu does not have"
        )
    # the same map with a threshold
    model, count = _thresholded(old), 0
    if isinstance(old, LargestOfRows):
        model.threshold.zero_()
        theta, count = matching_threshold(old, model, run.source, rows or ROWS)
        model.threshold.fill_(theta)
    # what that changes on other rows
    before, after = (holdout_figures(m, run.source) for m in (old, model))
    figures = [{name: of[name] for name in ("fvu", "l0")} for of in (before, after)]
    result = ConvertResult(
        str(out),
        old.sparsity,
        to,
        float(model.threshold.double().mean()),
        count,
        after.rows,
        *figures,
    )
    # the checkpoint
    config = open_checkpoint(source_path).config
    about = dataclasses.asdict(result)
    about["from"] = source_path
    about |= {"store": str(run.source.path), "content": run.source.content}
    del about["path"]
    changed = {
        "config": dataclasses.asdict(model.config),
        "result": config["result"] | {"metrics": after.scalars() | {"dead_train": None}},
        "versions": versions(),
        "converted": about,
    }
    with run_folder(Path(out), CONVERT, resume=False, overwrite=overwrite) as folder:
        folder.begin({"converted": about})
        write_checkpoint(folder.path, config | changed, model.state_dict())
    return result


def _other_code(path: str, kind: str, thresholded: bool) -> UsageError:
    if thresholded:
        return UsageError(f"{path} ({kind}) has a threshold already")
    kinds = [name for name, v in VARIANTS.items() if issubclass(v, (LargestOfRows, LargestOfBatch))]
    return UsageError(
        f"{path} ({kind}): its code is not the largest values of a row or a batch",
        f"SAEs whose code is: {', '.join(kinds)}",
    )


def _thresholded(old: SAE) -> SAE:
    """The jumprelu with the weights of a dictionary, and its threshold where it has one."""
    settings: dict[str, Any] = dataclasses.asdict(old.config)
    shared = {f.name: settings[f.name] for f in dataclasses.fields(SAEConfig)}
    tensors = dict(old.state_dict())
    tensors.setdefault("threshold", torch.zeros(old.latents))
    # a jumprelu does not scale its codes: the decoder's norms move into the encoder
    if shared["rescale_by_decoder_norm"]:
        norms_F1 = old.decoder_norms()[:, None]
        tensors["W_enc"] = tensors["W_enc"] * norms_F1
        tensors["b_enc"] = tensors["b_enc"] * norms_F1[:, 0]
        tensors["W_dec"] = tensors["W_dec"] * old.inverse_norms()[:, None]
    shared |= {"sparsity": "jumprelu", "rescale_by_decoder_norm": False}
    config = typed.build(config_of("sae", "jumprelu"), shared, "config").resolved()
    model = restore("sae", dataclasses.asdict(config), tensors)
    assert isinstance(model, SAE)
    return model


@torch.no_grad()
def matching_threshold(old: SAE, model: SAE, source: Rows, rows: int) -> tuple[float, int]:
    """(threshold, rows): exceeded on the first `rows` training rows, shuffled, by as many
    pre-activations as `old` has active latents there. `model` is the same map with the threshold 0,
    whose code holds these pre-activations. Fewer rows where their codes would not fit."""
    count = min(rows, source.count("train"), max(VALUES // old.config.k, 1))
    most, active = count * old.config.k, 0
    kept, least = torch.zeros(0), 0.0
    for batch in chosen_batches(source, "train", count, seed=0, examples=False):
        for x_BD in batch.x.float().split(max(CODE_NUMBERS // old.latents, 1)):
            active += int(firing_counts(old.encode(x_BD), 0.0).sum())
            code_BF = model.encode(x_BD)
            assert isinstance(code_BF, torch.Tensor)
            kept = torch.cat([kept, code_BF[code_BF > least]])
            if len(kept) > 2 * most:
                kept = kept.topk(most + 1).values
                least = float(kept[-1])
    return threshold_between(kept, active), count


def threshold_between(values_N: torch.Tensor, active: int) -> float:
    """The threshold >= 0 that `active` of the positive values exceed: half-way to the next smaller
    one. Equal values are on one side: on that which brings the number nearer to `active`."""
    ordered_N = values_N.sort(descending=True).values
    if active == 0:
        return float(ordered_N[0]) if len(ordered_N) else 0.0
    last = ordered_N[min(active, len(ordered_N)) - 1]
    without, including = int((ordered_N > last).sum()), int((ordered_N >= last).sum())
    if active - without < including - active:
        return float(last)
    smaller = ordered_N[including] if including < len(ordered_N) else torch.zeros_like(last)
    middle = smaller + (last - smaller) / 2
    return float(middle if middle < last else smaller)
