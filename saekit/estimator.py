"""Every model as a scikit-learn estimator: arrays in, arrays out, no folders.

A thin layer over the parts of `train`: ArraySource gives rows, saekit.training.fit trains,
catalog.restore gives the module that takes raw rows. This file adds what scikit-learn requires:
parameters that are only stored, validation, dense codes, pickles.

Errors of the core name its options; here they name parameters of the constructor, and are raised as
ValueError, as scikit-learn's own tools expect.

There is no partial_fit: a learning rate that falls over the run, stages of pretraining and the mean
of all rows need to know all of X beforehand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from saekit_kernels import SparseCodes, from_dense
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from saekit.device import pick_device
from saekit.errors import DataError, UsageError, keyword, literal, opt
from saekit.models.autoencoder import Autoencoder
from saekit.models.catalog import CATALOG, LABELED, model_options, restore
from saekit.models.metrics import RowSums
from saekit.store.memory import ArraySource
from saekit.training.config import TrainConfig
from saekit.training.defaults import resolve
from saekit.training.fit import fit
from saekit.training.health import drawn
from saekit.types import Progress

ROWS_AT_ONCE = 4096  # of a pass over data: bounds the memory of hidden layers
# options of training whose parameter has another name
RENAMED = {"seed": "random_state", "rows": "epochs"}


class Estimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """An autoencoder of saekit's catalog with scikit-learn's interface: it works in pipelines, grid
    searches and `clone`.

    >>> from sklearn.datasets import load_digits
    >>> X, _ = load_digits(return_X_y=True)
    >>> pca = Estimator("pca", latents=16).fit(X)
    >>> pca.transform(X).shape, round(pca.score(X), 2)
    ((1797, 16), 0.85)

    Parameters
        model: name in saekit.models.catalog: sae | pca | kmeans | linear | dense | vae ... Models
            without an encoder (gan, dcgan, cgan) only have `sample` and `inverse_transform`.
        latents: length F of the code; None: the model's default, for pca at most n_features, for
            kmeans at most n_samples.
        options: the model's other options by name, such as {"hidden": (256, 64), "noise":
            "masking:0.3"} or {"k": 8}.
        epochs, batch, lr, weight_decay: as in saekit.training.config; None:
            saekit.training.defaults. pca and kmeans use none of them.
        normalize: "center+scale" | "scale" | "none": one mean row and one factor for the whole of
            X. None: center+scale, since the default learning rates suit values around 0 of size 1;
            none where options["output"] is sigmoid or bernoulli, which give [0, 1].
        image_shape: (H, W, C) of a row, with H * W * C = n_features, for models that take images;
            the others do not use it.
        random_state: the same int gives the same bits; None or a RandomState draw a seed.
        device: "auto" | "cpu" | "cuda" ...; "auto" is CUDA where torch sees it.

    Attributes, after fit
        model_: the trained module, which takes raw rows; n_features_in_, feature_names_in_;
            n_iter_: steps.
        history_: list of dicts with step, loss and fvu (of that batch), at most 400; empty for pca
            and kmeans.
        components_ (F, n_features): rows of the decoder in units of X, for models whose decoder has
        one layer (pca, linear, sae). mean_ (n_features,), explained_variance_ratio_ (F,): only
        pca.

    X is (n_samples, n_features), an array, DataFrame or torch tensor; tensors give tensors on their
    device, everything else NumPy arrays. Computation and results are float32; float64 is accepted
    and rounded. `transform` gives dense codes, also for sparse models.

    Raises ValueError for options or data that do not fit, TypeError for sparse matrices,
    NumericsError for a run that diverged and BackendError for a device that is not there.
    """

    def __init__(
        self,
        model: str = "dense",
        *,
        latents: int | None = None,
        options: Mapping[str, Any] | None = None,
        epochs: float | None = None,
        batch: int | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        normalize: Literal["center+scale", "scale", "none"] | None = None,
        image_shape: tuple[int, int, int] | None = None,
        random_state: int | np.random.RandomState | None = 0,
        device: str = "auto",
    ) -> None:
        self.model = model
        self.latents = latents
        self.options = options
        self.epochs = epochs
        self.batch = batch
        self.lr = lr
        self.weight_decay = weight_decay
        self.normalize: Literal["center+scale", "scale", "none"] | None = normalize
        self.image_shape = image_shape
        self.random_state = random_state
        self.device = device

    # -- training
    # ----------------------------------------------------------------------------------------------

    def fit(self, X, y=None) -> Estimator:
        """Train on all rows of X. `y` are the classes of the rows for cgan; all other models ignore
        it."""
        x_ND = self._rows(X, reset=True)
        with _as_value_errors():
            labels = self._labels(y, len(x_ND)) if self.model in LABELED else None
            self._train(x_ND, labels)
        return self

    def _labels(self, y: Any, n: int) -> list[str]:
        if y is None:
            raise DataError(f"{self.model} reads the class of every row", "fit(X, y)")
        labels = [str(label) for label in np.asarray(y).tolist()]
        if len(labels) != n:
            raise DataError(f"y holds {len(labels)} classes for {n} rows")
        return labels

    def _train(self, x_ND: torch.Tensor, labels: list[str] | None) -> None:
        n, d_in = x_ND.shape
        config = self._config(n, d_in)
        run = resolve(config, ArraySource(x_ND, shape=self._shape(d_in), labels=labels))
        history: list[dict[str, float | None]] = []
        fitted = fit(
            run.model,
            run.rows,
            run.config,
            run.steps,
            run.device,
            run.backend.name,
            progress=lambda p: history.append(_untimed(p)),
        )
        self._restored = (self.model, dataclasses.asdict(run.model.config))
        self.model_ = restore(*self._restored, fitted.tensors)
        self.n_iter_, self.history_, self._seed = fitted.steps, history, run.config.seed
        if self.model == "pca":
            self._total_variance = float(x_ND.numpy().var(axis=0, dtype=np.float64).sum())

    def _config(self, n: int, d_in: int) -> TrainConfig:
        known = model_options(self.model)
        options = dict(self.options or {})
        if "latents" in options:
            raise UsageError(
                'options["latents"] is given, and latents is a parameter',
                opt("latents", options["latents"]),
            )
        # The size of the code; a closed form cannot have more than the data gives.
        latents = self.latents
        if latents is None and self.model in ("pca", "kmeans"):
            latents = min(known["latents"].default, d_in if self.model == "pca" else n)
        if latents is not None:
            options["latents"] = latents
        # Epochs become rows.
        seed = self._drawn_seed()
        if self.epochs is not None and not self.epochs > 0:
            raise UsageError(f"{opt('epochs', self.epochs)} must be above 0")
        return TrainConfig(
            model=self.model,
            options=options,
            rows=None if self.epochs is None else max(round(self.epochs * n), 1),
            batch=self.batch,
            lr=self.lr,
            weight_decay=self.weight_decay,
            normalize=self.normalize,
            seed=seed,
            device=self.device,
        )

    def _drawn_seed(self) -> int:
        if isinstance(self.random_state, Integral):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))

    def _shape(self, d_in: int) -> tuple[int, int, int] | None:
        fields = {field.name for field in dataclasses.fields(CATALOG[self.model].config)}
        if self.image_shape is None:
            if "shape" in fields and CATALOG[self.model].model.takes != "rows":
                raise DataError(
                    f"{self.model} takes images, and rows of X have no image shape",
                    "image_shape=(H, W, C)",
                )
            return None
        shape = tuple(self.image_shape)
        if len(shape) != 3 or np.prod(shape) != d_in:
            raise DataError(f"image_shape {shape}: H * W * C must be the {d_in} features of X")
        return shape

    # -- the map
    # ----------------------------------------------------------------------------------------------

    def transform(self, X):
        """Codes (n_samples, F) of the rows of X."""
        return self._mapped(X, lambda model, x_BD: _dense(model.encode(x_BD)))

    def inverse_transform(self, Z):
        """Rows (n_samples, n_features) from codes (n_samples, F). Codes of kmeans are one-hot."""
        check_is_fitted(self)
        z: Any = check_array(_array(Z), dtype="float32", input_name="Z")
        z_NF = _tensor(z)
        if z_NF.shape[1] != self.model_.latents:
            raise ValueError(
                f"Z has {z_NF.shape[1]} columns, and the codes of this {self._restored[0]} have"
                f" {self.model_.latents}"
            )
        if (
            self._restored[0] == "kmeans"
            and not ((z_NF == 1).sum(1).eq(1) & (z_NF != 0).sum(1).eq(1)).all()
        ):
            raise ValueError("codes of kmeans hold a single 1 in every row")
        return _like(Z, torch.cat(list(self._in_parts(z_NF, _decoded))))

    def reconstruct(self, X):
        """What the decoder makes of the codes of X, in the shape and units of X."""
        return self._mapped(X, _reconstruction)

    # -- evaluation
    # ----------------------------------------------------------------------------------------------

    def score(self, X, y=None) -> float:
        """Explained variance 1 - FVU of X around its own mean, summed over rows and features in
        fp64; nan where X does not vary."""
        check_is_fitted(self)
        sums, x_ND = RowSums(None), self._rows(X)
        x_hats = self._in_parts(x_ND, _reconstruction)
        for x_BD, x_hat_BD in zip(x_ND.split(ROWS_AT_ONCE), x_hats):
            sums.add(x_BD, x_hat_BD, x_BD)  # a dense code, which is not read
        fvu = sums.figures()["fvu"]
        assert fvu is not None
        return 1 - fvu

    def score_samples(self, X):
        """Minus the squared error of each row, (n_samples,), units of X squared: higher for rows
        that are more like the training data."""

        def score(model: Any, x_BD: torch.Tensor) -> torch.Tensor:
            return -(x_BD - _reconstruction(model, x_BD)).double().square().sum(1).float()

        return self._mapped(X, score)

    @available_if(lambda self: self.model == "vae")
    def elbo_samples(self, X):
        """Lower bound on log p(x) of each row, (n_samples,), nats, from one draw of the code per
        row; the seed decides the draws."""
        check_is_fitted(self)
        generator = torch.Generator(pick_device(self.device)).manual_seed(self._seed)
        return self._mapped(X, lambda model, x_BD: model.elbo(x_BD, generator))

    @available_if(lambda self: self.model in CATALOG and CATALOG[self.model].model.generates)
    def sample(self, n: int = 64, label: Any = None):
        """(n, n_features): rows drawn from the model, in units of X, by the seed of the fit;
        `label`: of this class, for cgan. Raises ValueError for a label that it does not know."""
        check_is_fitted(self)
        with _as_value_errors(), torch.no_grad():
            generator = torch.Generator().manual_seed(self._seed)
            return drawn(self.model_, n, generator, label).numpy()

    @property
    def components_(self) -> np.ndarray:
        rows_FD = getattr(self.model_, "W_dec", None)
        if rows_FD is None:
            raise AttributeError(f"the decoder of this {self._restored[0]} has no row for a latent")
        return rows_FD.cpu().numpy()

    @property
    def mean_(self) -> np.ndarray:
        return self._of_pca("mean").cpu().numpy()

    @property
    def explained_variance_ratio_(self) -> np.ndarray:
        return (self._of_pca("explained_variance") / self._total_variance).cpu().numpy()

    def _of_pca(self, name: str) -> torch.Tensor:
        if self._restored[0] != "pca":
            raise AttributeError(f"{self._restored[0]} has no {name}; pca has")
        return getattr(self.model_, name)

    # -- passes over data
    # ----------------------------------------------------------------------------------------------

    def _rows(self, X, reset: bool = False) -> torch.Tensor:
        """(N,D) fp32 on the CPU. A single row has no variance to learn from."""
        least, array = 2 if reset else 1, _array(X)
        x: Any = validate_data(self, array, reset=reset, dtype=np.float32, ensure_min_samples=least)
        return _tensor(x)

    def _mapped(self, X, function: Callable[[Any, torch.Tensor], torch.Tensor]):
        check_is_fitted(self)
        return _like(X, torch.cat(list(self._in_parts(self._rows(X), function))))

    @torch.no_grad()
    def _in_parts(
        self, rows: torch.Tensor, function: Callable[[Any, torch.Tensor], torch.Tensor]
    ) -> Iterator[torch.Tensor]:
        """function(model, rows), on the CPU, for ROWS_AT_ONCE rows at a time."""
        device = pick_device(self.device)
        model = self.model_.to(device)
        for part in rows.split(ROWS_AT_ONCE):
            with _as_value_errors():  # a model without an encoder says so
                result = function(model, part.to(device)).cpu()
            yield result

    # -- what scikit-learn asks of an estimator
    # -----------------------------------------------------------------------------

    @property
    def _n_features_out(self) -> int:
        return self.model_.latents

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Tensors on the CPU instead of the module, as in a checkpoint, so that a pickle from a GPU
        opens without one."""
        state: dict[str, Any] = {**super().__getstate__()}  # pyright: ignore[reportGeneralTypeIssues]
        if "model_" in state:
            state["model_"] = {
                name: tensor.cpu() for name, tensor in state["model_"].state_dict().items()
            }
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "model_" in state:
            name, config = state["_restored"]
            state = {**state, "model_": restore(name, config, state["model_"])}
        super().__setstate__(state)


def _untimed(progress: Progress) -> dict[str, float | None]:
    """The metrics without the one that differs between runs."""
    return {name: value for name, value in progress.figures.items() if name != "rows_per_s"}


def _reconstruction(model: Autoencoder, x_BD: torch.Tensor) -> torch.Tensor:
    return model.decode(model.encode(x_BD))


def _decoded(model: Autoencoder, z_BF: torch.Tensor) -> torch.Tensor:
    return model.decode(from_dense(z_BF) if isinstance(model, CATALOG["kmeans"].model) else z_BF)


def _dense(code: torch.Tensor | SparseCodes) -> torch.Tensor:
    return code.to_dense()


def _array(X) -> Any:
    """Tensors as arrays, for scikit-learn's validation; NumPy has no bfloat16."""
    if isinstance(X, torch.Tensor):
        return X.detach().cpu().to(torch.promote_types(X.dtype, torch.float32)).numpy()
    return X


def _tensor(x: np.ndarray) -> torch.Tensor:
    """A copy of read-only memory, such as joblib's memory maps, about which torch warns."""
    return torch.from_numpy(np.ascontiguousarray(x) if x.flags.writeable else x.copy())


def _like(X, result: torch.Tensor):
    return result.to(X.device) if isinstance(X, torch.Tensor) else result.numpy()


@contextmanager
def _as_value_errors() -> Iterator[None]:
    """Errors in parameters or data become ValueError, and name parameters of the estimator instead
    of the core's options."""
    try:
        yield
    except (UsageError, DataError) as error:
        cause, hint = error.spelled(_parameter)
        raise ValueError(f"{cause}; try {hint}" if hint else cause) from error


def _parameter(name: str, values: list[Any]) -> str:
    """`latents=16`; for options that are not parameters `options={"k": 8}`, or `options["k"]`
    without a value."""
    name = RENAMED.get(name, name)
    if name in Estimator._get_param_names():
        return keyword(name, values)
    settings = [f"options={{{literal(name)}: {literal(value)}}}" for value in values]
    return " or ".join(settings) or f"options[{literal(name)}]"
