"""The weights of a sparse autoencoder and the map that they compute: encode, decode, fold.

    pre = x W_enc^T + b_enc,   z = sparsity(pre),   x_hat = z W_dec + b_dec

Published dictionaries change both ends of it (`SAEConfig`): with s and t their `input_factor` and
`output_factor`, and n_j = ||w_j|| under `rescale_by_decoder_norm`, else 1,

    y = s input_norm(x) - b_dec,   pre_j = n_j (y W_enc^T + b_enc)_j,
    y_hat = ((z / n) W_dec + b_dec) / t,

where b_dec is subtracted with `subtract_b_dec`. `decode` gives y_hat, and `restored` makes x_hat of
it: the norm undone, the skip added.

Encoder and decoder are both stored (F,D), one latent per row, so that the vectors of single latents
are contiguous. How they train is saekit.models.sae.module.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from saekit_kernels import SparseCodes, Workspace, Workspaces, preactivations
from torch import nn

from saekit.errors import UsageError
from saekit.models.autoencoder import Autoencoder
from saekit.models.base import as_rows, unit_rows_
from saekit.models.codes import Code, decoded, rescaled
from saekit.models.normalizer import Normalizer
from saekit.models.sae.config import SAEConfig
from saekit.models.sae.fold import folded, unfolded
from saekit.models.sae.input_norm import denormalized, input_scale, normalized
from saekit.models.sae.largest import Select, largest
from saekit.types import Output


class Dictionary(Autoencoder):
    """W_enc (F,D), b_enc (F,), W_dec (F,D_out), b_dec (D_out,), and the map that they compute."""

    config: Any  # a config_class
    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    threshold: torch.Tensor
    """(F,), where the class says `thresholded`."""

    sparsity: ClassVar[str] = ""
    """Its name among the variants."""
    config_class: ClassVar[type[SAEConfig]] = SAEConfig
    line: ClassVar[str] = ""
    """What it is, in one line, for lists."""
    active_above: float | None = 0.0
    homogeneous: ClassVar[bool] = True
    """encode(c x) = c encode(x) for c > 0, with the threshold scaled too, so that the input's scale
    folds into the biases."""
    thresholded: ClassVar[bool] = False
    """A trained model's code is pre where pre > threshold; the threshold is saved."""
    largest_of_rows: ClassVar[bool] = False
    """The code is the k largest values of a row, and can be cut to fewer without training."""
    constrained_decoder: ClassVar[bool] = False
    """W_dec is computed from parameters that a checkpoint does not hold."""
    by_latent: ClassVar[tuple[str, ...]] = ("W_enc", "b_enc", "W_dec", "threshold")
    """Tensors of a checkpoint with one row per latent."""
    in_code_units: ClassVar[tuple[str, ...]] = ("W_enc", "b_enc", "threshold")
    """Tensors that scale with the code."""

    def __init__(
        self, config: SAEConfig | None = None, *, folded: bool = False, **options: Any
    ) -> None:
        """Options are the fields of `config_class`. folded=True: the tensors will be those of a
        checkpoint, without what only training has. Raises UsageError for invalid options."""
        super().__init__()
        # the config, resolved
        config = (
            self.config_class(**options)
            if config is None
            else dataclasses.replace(config, **options)
        )
        if not isinstance(config, self.config_class):
            raise UsageError(
                f"{type(self).__name__} takes {self.config_class.__name__}, not"
                f" {type(config).__name__}"
            )
        self.config = dataclasses.replace(
            config, sparsity=self.sparsity or config.sparsity
        ).resolved()
        self.d_in, self.latents = self.config.d_in, self.config.latents
        self.d_out = self.config.d_out or self.d_in
        self.is_folded = folded
        # the tensors
        self.W_enc = nn.Parameter(torch.empty(self.latents, self.d_in))
        self.b_enc = nn.Parameter(torch.zeros(self.latents))
        self.W_dec = nn.Parameter(torch.empty(self.latents, self.d_out))
        self.b_dec = nn.Parameter(torch.zeros(self.d_out))
        self.W_skip = nn.Parameter(torch.zeros(self.d_out, self.d_in)) if self.config.skip else None
        if self.thresholded:
            self.register_buffer("threshold", torch.zeros(self.latents))
        # random directions, until `initialise_from`
        with torch.no_grad():
            unit_rows_(self.W_dec.normal_())
            if self.transcodes:
                unit_rows_(self.W_enc.normal_())
            else:
                self.W_enc.copy_(self.W_dec)
        self.workspaces = Workspaces()

    def extra_repr(self) -> str:
        k = f", k={self.config.k}" if hasattr(self.config, "k") else ""
        out = f" -> {self.d_out}" if self.transcodes else ""
        return f"{self.d_in} -> {self.latents}{out}{k}" + (", folded" if self.is_folded else "")

    @property
    def workspace(self) -> Workspace:
        """Buffers of the calling thread."""
        return self.workspaces.current

    @property
    def transcodes(self) -> bool:
        """Whether the target is another store."""
        return self.config.d_out > 0

    @property
    def weights(self) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter, nn.Parameter]:
        return self.W_enc, self.b_enc, self.W_dec, self.b_dec

    # -- the map

    def encode(self, x: torch.Tensor) -> Code:
        """The code (..., F) of x (..., D), in any float dtype, computed in that of the weights. Its
        form, a tensor or SparseCodes, depends on the variant; both have the same interface
        (saekit.models.codes), and `to_dense()` is a tensor. Differentiable in x and the weights;
        which latents are active is constant. A row with NaN has a code with NaN. Several threads
        may encode at once. Raises DataError for another width, dtype or device."""
        code = self.code_of(self.encoder_input(as_rows(x, self.d_in, self.W_enc)))
        return code.view(*x.shape[:-1], self.latents)

    def encoder_input(self, x_BD: torch.Tensor) -> torch.Tensor:
        """The rows that the encoder's weights act on: x itself, unless the config says
        otherwise."""
        x_BD = normalized(self.config.input_norm, x_BD)
        if self.config.input_factor != 1:
            x_BD = x_BD * self.config.input_factor
        return x_BD - self.b_dec if self.config.subtract_b_dec else x_BD

    def code_of(self, x_BD: torch.Tensor) -> Code:
        """The code (B,F) of rows."""
        return self.thresholded_code(x_BD)

    def thresholded_code(self, x_BD: torch.Tensor) -> torch.Tensor:
        """(B,F): pre where it is above the threshold; ReLU(pre) if there is no threshold."""
        pre = torch.addmm(self.b_enc, x_BD, self.W_enc.T)
        if self.config.rescale_by_decoder_norm:
            pre = pre * self.decoder_norms()
        # NaN stays NaN
        return torch.where(pre <= self.threshold, 0.0, pre) if self.thresholded else pre.relu_()

    def with_gradient(self, codes: SparseCodes, x_BD: torch.Tensor) -> SparseCodes:
        """Codes that a kernel selected, with values that are differentiable in x and the weights
        where autograd needs them."""
        needed = any(tensor.requires_grad for tensor in (x_BD, self.W_enc, self.b_enc))
        if not (needed and torch.is_grad_enabled()):
            return codes
        vals = preactivations(codes, x_BD, self.W_enc, self.b_enc)
        return dataclasses.replace(codes, vals=vals)

    def largest_rescaled(self, x_BD: torch.Tensor, select: Select) -> SparseCodes:
        """The k values pre_j ||w_j|| of each row that `select` chooses, differentiable."""
        norms_F = self.decoder_norms()
        codes = largest(self, x_BD, self.config.k, select, norms_F)
        codes = self.with_gradient(codes, x_BD)
        return dataclasses.replace(codes, vals=codes.vals * norms_F[codes.idx.long()])

    def decode(self, code: Code) -> torch.Tensor:
        """x_hat (..., D_out) of what `encode` returns, or of any code (..., F), without what
        depends on x besides the code: it is without the skip, and with an `input_norm` in
        normalized units (`restored`). Raises DataError for a dense code of another width, dtype or
        device."""
        if self.config.rescale_by_decoder_norm:
            code = rescaled(code, self.inverse_norms())
        x_hat = decoded(code, self.decoder(), self.b_dec)
        return x_hat if self.config.output_factor == 1 else x_hat / self.config.output_factor

    def restored(self, x_hat: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The reconstruction (..., D_out) of x (..., D) whose code, or an edited one, decodes to
        x_hat: the input's norm undone, the skip added."""
        if not self.transcodes:
            x_hat = denormalized(self.config.input_norm, x_hat, x.to(self.W_enc.dtype))
        skip = self.skip(x)
        return x_hat if skip is None else x_hat + skip

    def values_of(self, x: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """(B,L): the values of some latents (L,) int64 in the codes of rows x (B,D). Where each
        latent has a threshold of its own, only their rows of the encoder are read; where latents
        compete, the whole code is computed."""
        if type(self).code_of is not Dictionary.code_of and not (
            self.thresholded and self.is_folded and not self.training
        ):
            values = self.encode(x)[:, latents]
            assert isinstance(values, torch.Tensor)
            return values
        x_BD = self.encoder_input(as_rows(x, self.d_in, self.W_enc))
        pre = torch.addmm(self.b_enc[latents], x_BD, self.W_enc[latents].T)
        if self.config.rescale_by_decoder_norm:
            pre = pre * self.decoder_norms()[latents]
        if not self.thresholded:
            return pre.relu()
        return torch.where(pre <= self.threshold[latents], 0.0, pre)

    def decoded_change(
        self, delta_BL: torch.Tensor, latents: torch.Tensor, x: torch.Tensor | None
    ) -> torch.Tensor:
        """(B,D_out): by how much the reconstruction of rows x (B,D) changes when the values of some
        latents (L,) change by delta. x may be None without an `input_norm`."""
        if self.config.rescale_by_decoder_norm:
            delta_BL = delta_BL * self.inverse_norms()[latents]
        change = delta_BL @ self.decoder_rows(latents) / self.config.output_factor
        if self.config.input_norm == "none" or self.transcodes:
            return change
        assert x is not None
        return change * input_scale(self.config.input_norm, x.to(self.W_enc.dtype))

    def decoder(self) -> torch.Tensor:
        """W_dec (F,D_out), differentiable in the parameters that it is computed from."""
        return self.W_dec

    def decoder_rows(self, latents: torch.Tensor) -> torch.Tensor:
        """The rows of `decoder` for the given latents."""
        return self.W_dec[latents]

    def skip(self, x: torch.Tensor) -> torch.Tensor | None:
        """(..., D_out): x W_skip^T; None without a skip."""
        return None if self.W_skip is None else x.to(self.W_skip.dtype) @ self.W_skip.T

    def forward(self, x: torch.Tensor) -> Output:
        """x_hat (..., D_out) and the code of x (..., D)."""
        code = self.encode(x)
        return Output(self.restored(self.decode(code), x), code)

    def decoder_norms(self) -> torch.Tensor:
        """(F,): ||w_j||, which weighs a penalty; in a crosscoder summed over the hooks (Lindsey et
        al. 2024, "Sparse Crosscoders")."""
        parts = self.W_dec.split(self.config.parts or self.d_out, dim=1)
        norms = [torch.linalg.vector_norm(part, dim=1) for part in parts]
        return sum(norms[1:], norms[0])

    def inverse_norms(self) -> torch.Tensor:
        """(F,): 1 / ||w_j||; 0 for a latent without a decoder row, which adds nothing to x_hat."""
        norms_F = self.decoder_norms()
        return torch.where(norms_F > 0, 1 / norms_F, 0.0)

    def need_trainable(self) -> None:
        """Raise UsageError where the config has fields that only loaded weights have: training and
        folding compute the map without them."""
        if names := self.config.loaded_only:
            raise UsageError(f"{names[0]} is for weights that are loaded, not for training")

    # -- saving

    @classmethod
    def for_weights(cls, config: SAEConfig) -> Dictionary:
        return cls(config, folded=True)

    def effective(self) -> dict[str, torch.Tensor]:
        """W_enc, b_enc, W_dec, b_dec (and threshold) with which a folded model computes the trained
        code."""
        names = ("W_enc", "b_enc", "W_dec", "b_dec")
        tensors = {name: getattr(self, name).detach() for name in names}
        return tensors | ({"threshold": self.threshold} if self.thresholded else {})

    def folded(
        self, inputs: Normalizer, targets: Normalizer | None = None
    ) -> dict[str, torch.Tensor]:
        return folded(self, inputs, targets)

    def unfolded(self, inputs: Normalizer) -> dict[str, torch.Tensor]:
        """The tensors that act on normalized x as these act on raw x: undoes `folded`."""
        return unfolded(self, inputs)
