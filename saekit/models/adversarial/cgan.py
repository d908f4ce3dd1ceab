"""`cgan`: gan in which the class of a row is given to both networks (Mirza and Osindero 2014, arXiv
1411.1784), so that samples of a class can be asked for.

    min_d  -E_{x,y} log d(x, y) - E_{z,y} log(1 - d(G(z, y), y))        eq. 2
    min_G  -E_{z,y} log d(G(z, y), y)

y are the labels of the training rows, of generated ones too: d cannot tell them apart by how often
a class is there. `body` dense has the networks of gan, conv those of dcgan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from saekit.errors import DataError, UsageError, opt
from saekit.models.adversarial import bodies
from saekit.models.adversarial.dcgan import images_of, levels_of
from saekit.models.adversarial.gan import Drawing, GANConfig
from saekit.options import Doc
from saekit.types import ActivationBatch

SHOWN = 12  # labels in an error


@dataclass(frozen=True)
class CGANConfig(GANConfig):
    body: Annotated[
        Literal["dense", "conv"] | None,
        Doc("Networks of gan or of dcgan (default: conv for images, else dense)."),
    ] = None
    channels: Annotated[
        tuple[int, ...] | None,
        Doc("With body conv, as for dcgan; body dense has hidden and discriminator-hidden."),
    ] = None
    classes: tuple[str, ...] = ()
    """The labels of the training rows, sorted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "classes", tuple(self.classes))
        if self.channels is not None:
            object.__setattr__(self, "channels", tuple(self.channels))
        if self.convolves:
            if self.shape and self.d_in == self.shape[-1]:
                raise DataError(
                    f"{opt('body', 'conv')} of cgan takes images in flat rows",
                    f"{opt('model', 'dcgan')} takes grids, without classes",
                )
            images_of(self, "cgan", self.channels)

    @property
    def convolves(self) -> bool:
        images = len(self.shape) == 3 and self.d_in != self.shape[-1]
        large = all((side or 0) > 3 for side in self.shape[:2])
        return self.body == "conv" or (self.body is None and images and large)


class CGAN(Drawing):
    def __init__(self, config: CGANConfig) -> None:
        super().__init__(config)
        classes = len(config.classes)
        if not classes:
            raise DataError("cgan needs a label for every row, and these have none")
        if config.convolves:
            channels = levels_of(config, config.channels)
            self.images = images_of(config, "cgan", config.channels)
            self.generator = bodies.ConvGenerator(self.latents, channels, self.images, classes)
            self.discriminator = bodies.ConvDiscriminator(
                channels, self.images, classes, config.spectral_norm
            )
        else:
            self.generator = bodies.DenseGenerator(
                self.latents, config.hidden, self.d_in, config.activation, classes
            )
            self.discriminator = bodies.DenseDiscriminator(
                self.d_in, config.judging, classes, config.spectral_norm
            )

    def batch_classes(self, batch: ActivationBatch) -> torch.Tensor:
        assert batch.label is not None, "the source has no labels"
        return batch.label.to(batch.x.device)

    def classes_of(self, label: object, count: int) -> torch.Tensor:
        """(count,) numbers of one class, or where `label` is None of all classes in turn. Raises
        UsageError for a label that training has not seen."""
        device, classes = self.input_mean.device, self.config.classes
        if label is None:
            return torch.arange(count, device=device) % len(classes)
        if str(label) not in classes:
            shown = ", ".join(classes[:SHOWN]) + (" ..." if len(classes) > SHOWN else "")
            raise UsageError(
                f"{opt('label', label)} is not one of the classes of the training",
                f"one of {shown}",
            )
        return torch.full((count,), classes.index(str(label)), device=device)
