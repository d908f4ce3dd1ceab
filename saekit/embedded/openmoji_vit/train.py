"""Train the ViT that ships as embedded:openmoji-vit.

    python -m saekit.embedded.openmoji_vit.train --work FOLDER [--out FOLDER]

Three stages. First masked patches (He et al. 2022, Masked Autoencoders): the encoder sees 40 % of
the patches, a small decoder draws the others. Then a small network learns where a drawing has its
eyes, wheels and stripes (`places`). Then the last four blocks learn names and parts, on half of the
patches of some pictures per emoji, whose states after the first two blocks are computed once.
The class token says the subgroup and the emoji; the patches say the words of its name, and of all
patches the loudest counts (their log-sum-exp). After block PARTS_AFTER every patch says which part
it shows, so that the states there have a direction for wheels. Only the subgroup's head is saved.

A tenth of the emoji is held out, with all of their skin tones. Training draws pictures that are not
in embedded:openmoji, so every picture of the set is a held-out one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from einops import rearrange
from torch import Tensor, nn

from saekit.embedded import openmoji
from saekit.embedded.openmoji.parts import parts
from saekit.embedded.openmoji.table import table
from saekit.embedded.openmoji_vit import FOLDER
from saekit.embedded.openmoji_vit.places import RATE, Places, other_colors, shown, with_parts
from saekit.embedded.silence import quiet_transformers

SEED = 0
HELD_OUT = 10  # one emoji of so many
FIRST_NUMBER = 1_000  # of the pictures for training: those of the set have lower numbers
PATCH, WIDTH, BLOCKS, HEADS = 8, 160, 6, 5
PATCHES = (openmoji.SIZE // PATCH) ** 2
SEEN_MASKED, SEEN_NAMED, DECODER = 0.4, 0.5, 96
# Of the three stages: epochs over the emoji for training, one picture each.
EPOCHS_MASKED, EPOCHS_PLACES, EPOCHS_NAMED = 40, 64, 44
FROZEN, PICTURES = 2, 16  # of the last stage: blocks that stay, pictures per emoji
PARTS_AFTER = 5  # blocks: the states are those of the hook blocks.4
BATCH_MASKED, BATCH_NAMED = 64, 32
# Of parts: length of their directions, weight of a patch that shows one, and of their loss.
PART_LENGTH, PART_WEIGHT, PART_LOSS = 1.0, torch.tensor(3.0), 2.0
MORE_PLACES, MORE_NAMED = 32, 24  # emoji in a batch for the sake of their parts
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05
SMOOTHING = 0.1
LEAST_EMOJI = 3  # with a word, for it to be learned
_NOT_SEEN = {"and", "over", "the", "with", "without"}  # words of a name that nothing shows
MEAN = STD = 0.5  # of pixels in [0, 1]; preprocessor_config.json repeats them

ARCHITECTURE: dict[str, Any] = dict(
    image_size=openmoji.SIZE,
    patch_size=PATCH,
    hidden_size=WIDTH,
    num_hidden_layers=BLOCKS,
    num_attention_heads=HEADS,
    intermediate_size=4 * WIDTH,
)
PREPROCESSOR = dict(
    image_processor_type="ViTImageProcessor",
    do_resize=True,
    size=dict(height=openmoji.SIZE, width=openmoji.SIZE),
    resample=2,
    do_rescale=True,
    rescale_factor=1 / 255,
    do_normalize=True,
    image_mean=[MEAN] * 3,
    image_std=[STD] * 3,
)


def subgroups() -> list[str]:
    return list(dict.fromkeys(emoji.subgroup for emoji in table()))


def is_held_out(emoji: int) -> bool:
    """By a hash of its name."""
    name = table()[emoji].name.encode()
    return hashlib.blake2b(name, digest_size=8).digest()[0] % HELD_OUT == 0


def training_emoji() -> list[int]:
    return [emoji for emoji in range(len(table())) if not is_held_out(emoji)]


def words() -> list[list[str]]:
    """Of every emoji the words of its name that others have too."""
    split = [
        {word.strip(":,“”’!") for word in emoji.name.lower().replace("-", " ").split()}
        for emoji in table()
    ]
    counts = Counter(word for emoji in training_emoji() for word in split[emoji])
    return [
        sorted(word for word in each - _NOT_SEEN if counts[word] >= LEAST_EMOJI and len(word) > 2)
        for each in split
    ]


def pixels(pictures: list[Any]) -> Tensor:
    """(B,3,72,72), normalized as the preprocessor does."""
    import numpy as np

    x_BHWC = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    return (rearrange(x_BHWC, "b h w c -> b c h w").float() / 255 - MEAN) / STD


def shuffled(
    epochs: int, batch: int, numbers: int, generator: torch.Generator
) -> Iterator[tuple[list[int], list[int]]]:
    """(emoji, numbers of their pictures): every emoji for training once per epoch."""
    emoji = torch.tensor(training_emoji())
    for _ in range(epochs):
        for chosen in emoji[torch.randperm(len(emoji), generator=generator)].split(batch):
            drawn = torch.randint(0, numbers, (len(chosen),), generator=generator)
            yield chosen.tolist(), (FIRST_NUMBER + drawn).tolist()


def pictures(emoji: list[int], numbers: list[int]) -> Tensor:
    """(B,3,72,72)."""
    return pixels([openmoji.draw(*pair) for pair in zip(emoji, numbers, strict=True)])


def seen(h_BTD: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The states of the class token and of a random share of the patches (B,1+K,D), and all patches
    in random order, those K first (B,T)."""
    order_BT = torch.rand(len(h_BTD), PATCHES, generator=generator).argsort(1)
    rows = torch.arange(len(h_BTD))[:, None]
    chosen_BK = order_BT[:, : round(PATCHES * share)]
    return torch.cat((h_BTD[:, :1], h_BTD[:, 1:][rows, chosen_BK]), 1), order_BT


def through(blocks: Any, h_BTD: Tensor) -> Tensor:
    for block in blocks:
        h_BTD = block(h_BTD)
    return h_BTD


@torch.no_grad()
def frozen_states(vit: Any) -> Tensor:
    """The states before block FROZEN of PICTURES pictures of every emoji for training, by emoji;
    zero for the others (E,N,1+T,D) float16."""
    states = torch.zeros(len(table()), PICTURES, 1 + PATCHES, WIDTH, dtype=torch.float16)
    for number in range(PICTURES):
        for part in torch.tensor(training_emoji()).split(64):
            emoji = part.tolist()
            h_BTD = vit.embeddings(pictures(emoji, [FIRST_NUMBER + number] * len(emoji)))
            states[part, number] = through(vit.layers[:FROZEN], h_BTD).half()
    return states


def places_of(places: Places) -> Tensor:
    """What its patches say of the same pictures (E,N,T,P) float16."""
    targets = torch.zeros(len(table()), PICTURES, PATCHES, len(parts()), dtype=torch.float16)
    for number in range(PICTURES):
        for part in torch.tensor(training_emoji()).split(64):
            emoji = part.tolist()
            drawn = pictures(emoji, [FIRST_NUMBER + number] * len(emoji))
            targets[part, number] = places.targets(drawn, emoji).half()
    return targets


class MaskedPatches(nn.Module):
    """The decoder of the first stage, and its loss."""

    def __init__(self, vit: Any, generator: torch.Generator) -> None:
        super().__init__()
        self.vit, self.generator = [vit], generator  # a list: not a part
        self.embed = nn.Linear(WIDTH, DECODER)
        self.missing = nn.Parameter(torch.zeros(DECODER))
        self.place = nn.Parameter(torch.randn(PATCHES, DECODER) * 0.02)
        layer = nn.TransformerEncoderLayer(
            DECODER, 4, 4 * DECODER, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.draw = nn.Linear(DECODER, 3 * PATCH**2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        target_BTP = rearrange(x_BCHW, "b c (h p) (w q) -> b (h w) (c p q)", p=PATCH, q=PATCH)
        rows = torch.arange(len(x_BCHW))[:, None]
        # The encoder sees some patches.
        vit = self.vit[0]
        h_BKD, order_BT = seen(vit.embeddings(x_BCHW), SEEN_MASKED, self.generator)
        z_BKD = self.embed(vit.layernorm(through(vit.layers, h_BKD)))[:, 1:]
        seen_BK, hidden_BM = order_BT.tensor_split([z_BKD.shape[1]], dim=1)
        # The decoder draws the others.
        canvas_BTD = self.missing.to(z_BKD.dtype).expand(len(x_BCHW), PATCHES, -1).clone()
        canvas_BTD[rows, seen_BK] = z_BKD
        drawn_BTP = self.draw(self.blocks(canvas_BTD + self.place))
        return nnf.mse_loss(drawn_BTP[rows, hidden_BM].float(), target_BTP[rows, hidden_BM])


class Names(nn.Module):
    """The heads of the last stage, and their loss."""

    def __init__(self, model: Any, generator: torch.Generator) -> None:
        super().__init__()
        self.model, self.generator = [model], generator
        known, trained = subgroups(), training_emoji()
        vocabulary = sorted({word for each in words() for word in each})
        self.subgroup = torch.tensor([known.index(emoji.subgroup) for emoji in table()])
        self.number = {emoji: i for i, emoji in enumerate(trained)}
        self.said = torch.zeros(len(table()), len(vocabulary))
        for emoji, each in enumerate(words()):
            self.said[emoji, [vocabulary.index(word) for word in each]] = 1
        self.emoji = nn.Linear(WIDTH, len(trained))
        self.word = nn.Linear(WIDTH, len(vocabulary))
        self.part = nn.Linear(WIDTH, len(parts()))
        nn.init.constant_(self.word.bias, -8.0)
        nn.init.constant_(self.part.bias, -5.0)

    def forward(
        self, h_BTD: Tensor, target_BTP: Tensor, emoji: list[int], extra: list[int]
    ) -> Tensor:
        """Of states before block FROZEN and of what their patches show. The pictures of `extra`,
        after those of `emoji`, only say their parts."""
        model, clear_BP = self.model[0], shown()[1][emoji + extra]
        h_BKD, order_BT = seen(h_BTD, SEEN_NAMED, self.generator)
        seen_BK, rows = order_BT[:, : h_BKD.shape[1] - 1], torch.arange(len(h_BTD))[:, None]
        # parts, of all pictures
        h_BKD = through(model.vit.layers[FROZEN:PARTS_AFTER], h_BKD)
        z_BKD = nnf.layer_norm(h_BKD[:, 1:], (WIDTH,))
        # Directions of one length: to be sure of a wheel, the states must change, not the weights.
        directions_PD = PART_LENGTH * nnf.normalize(self.part.weight, dim=1)
        said_BKP = nnf.linear(z_BKD, directions_PD, self.part.bias).float()
        part_BKP = nnf.binary_cross_entropy_with_logits(
            said_BKP, target_BTP[rows, seen_BK], reduction="none", pos_weight=PART_WEIGHT
        )
        part = PART_LOSS * (part_BKP * clear_BP[:, None]).sum() / len(h_BTD)
        # names
        h_BKD = through(model.vit.layers[PARTS_AFTER:], h_BKD[: len(emoji)])
        h_BKD = model.vit.layernorm(h_BKD)
        subgroup = model.classifier(h_BKD[:, 0]).float()
        name = self.emoji(h_BKD[:, 0]).float()
        word = torch.logsumexp(self.word(h_BKD[:, 1:]).float(), 1)
        numbers = torch.tensor([self.number[each] for each in emoji])
        return (
            part
            + nnf.cross_entropy(subgroup, self.subgroup[emoji], label_smoothing=SMOOTHING)
            + 0.5 * nnf.cross_entropy(name, numbers, label_smoothing=SMOOTHING)
            + nnf.binary_cross_entropy_with_logits(word, self.said[emoji], reduction="sum")
            / (4 * len(emoji))
        )


def learn(
    parts: list[nn.Module],
    loss_of: Callable[[list[int], list[int]], Tensor],
    epochs: int,
    batch: int,
    numbers: int,
    seed: int,
    say: Callable[[str], None],
    rate: float = LEARNING_RATE,
) -> None:
    """AdamW in bfloat16 autocast on the loss of (emoji, numbers of pictures); linear warm-up over a
    twentieth of the steps, then a cosine."""
    parameters = [p for part in parts for p in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY)
    each = math.ceil(len(training_emoji()) / batch)
    steps, began, mean = epochs * each, time.perf_counter(), 0.0
    stream = shuffled(epochs, batch, numbers, torch.Generator().manual_seed(seed))
    for step, chosen in enumerate(stream):
        warm = min(1.0, (step + 1) / (steps // 20 + 1))
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(*chosen)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        mean += loss.item() / each
        if (step + 1) % each == 0:
            spent = time.perf_counter() - began
            say(f"epoch {(step + 1) // each:3d}/{epochs}  loss {mean:.4f}  {spent:.0f} s")
            mean = 0.0


@torch.no_grad()
def figures(model: Any, most: int | None = None) -> dict[str, float]:
    """Shares of the set's pictures that are right, by the class token: group and subgroup by the
    head, of emoji that training saw and of the held-out ones; and the name of a picture, by the
    most similar one among the first pictures of all emoji that training saw. `most`: of so many
    emoji."""
    model.eval()
    known, place = subgroups(), {emoji.subgroup: emoji.group for emoji in table()}
    right: dict[str, list[bool]] = {}
    chosen = [
        e for e in range(len(table())) if most is None or e % math.ceil(len(table()) / most) == 0
    ]
    # Groups by the head, on two pictures of every emoji.
    states: list[Tensor] = []
    for number in range(2):
        parts = torch.tensor(chosen).split(64)
        cls_ED = torch.cat([
            model.vit(pixels([openmoji.draw(emoji, number) for emoji in part.tolist()]))
            .last_hidden_state[:, 0]
            for part in parts
        ])  # fmt: skip
        states.append(nnf.normalize(cls_ED, dim=1))
        for emoji, index in zip(chosen, model.classifier(cls_ED).argmax(1).tolist(), strict=True):
            subgroup, group = table()[emoji].subgroup, table()[emoji].group
            side = "held-out emoji" if is_held_out(emoji) else "held-out pictures"
            right.setdefault(f"subgroup, {side}", []).append(known[index] == subgroup)
            right.setdefault(f"group, {side}", []).append(place[known[index]] == group)
    # Names by the nearest picture.
    trained = torch.tensor([not is_held_out(emoji) for emoji in chosen])
    first_ND, second_ND = states[0][trained], states[1][trained]
    nearest_N = (second_ND @ first_ND.T).argmax(1)
    right["name, held-out pictures"] = (nearest_N == torch.arange(len(nearest_N))).tolist()
    return {name: sum(each) / len(each) for name, each in sorted(right.items())}


def train(
    pretrained: Path | None, found: Path | None, work: Path, say: Callable[[str], None]
) -> Any:
    """The transformers model, in evaluation mode. The weights of each stage are in `work` after
    every epoch; those of the first stage are read from `pretrained`, when given, instead of
    trained, and those of the second one from `found`."""
    from safetensors.torch import load_file, save_file
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(SEED)
    labels = dict(enumerate(subgroups()))
    config = ViTConfig(
        **ARCHITECTURE, id2label=labels, label2id={name: i for i, name in labels.items()}
    )
    model: Any = ViTForImageClassification(config)
    masked = MaskedPatches(model.vit, torch.Generator().manual_seed(SEED))
    names = Names(model, torch.Generator().manual_seed(SEED))
    places = Places()
    rare = [torch.Generator().manual_seed(SEED + stage) for stage in (0, 1)]

    def after_epoch(stage: str, module: nn.Module) -> Callable[[str], None]:
        def report(line: str) -> None:
            say(f"{stage}  {line}")
            save_file(module.state_dict(), work / f"{stage}.safetensors")

        return report

    if pretrained is None:
        learn(
            [model.vit, masked], lambda *chosen: masked(pictures(*chosen)),
            EPOCHS_MASKED, BATCH_MASKED, 2**30 - FIRST_NUMBER, SEED + 1,
            after_epoch("masked", model),
        )  # fmt: skip
    else:
        model.load_state_dict(load_file(pretrained))

    # Where the parts are.
    def place_loss(emoji: list[int], numbers: list[int]) -> Tensor:
        extra = with_parts(training_emoji(), MORE_PLACES, rare[0])
        more = torch.randint(0, 2**30 - FIRST_NUMBER, (len(extra),), generator=rare[0])
        drawn = pictures(emoji + extra, numbers + (FIRST_NUMBER + more).tolist())
        return places.loss(other_colors(drawn, rare[0]), emoji + extra)

    if found is None:
        learn(
            [places], place_loss, EPOCHS_PLACES, BATCH_NAMED, 2**30 - FIRST_NUMBER, SEED + 3,
            after_epoch("places", places), RATE,
        )  # fmt: skip
    else:
        places.load_state_dict(load_file(found))

    # Names and parts.
    states, targets = frozen_states(model.vit.eval()), places_of(places)

    def name_loss(emoji: list[int], numbers: list[int]) -> Tensor:
        extra = with_parts(training_emoji(), MORE_NAMED, rare[1])
        more = torch.randint(0, PICTURES, (len(extra),), generator=rare[1])
        which = [number - FIRST_NUMBER for number in numbers] + more.tolist()
        drawn = emoji + extra
        return names(states[drawn, which].float(), targets[drawn, which].float(), emoji, extra)

    learn(
        [model.vit.layers[FROZEN:], model.vit.layernorm, model.classifier, names],
        name_loss, EPOCHS_NAMED, BATCH_NAMED, PICTURES, SEED + 2, after_epoch("named", model),
    )  # fmt: skip
    return model.eval()


def save(model: Any, folder: Path) -> dict[str, float]:
    """Weights as float16; the figures are those of the stored weights."""
    from safetensors.torch import save_file

    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    with quiet_transformers():
        model.config.architectures = ["ViTForImageClassification"]
        model.config.dtype = torch.float32
        model.config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    result = {name: round(value, 4) for name, value in figures(model).items()}
    for name, content in (("preprocessor_config", PREPROCESSOR), ("figures", result)):
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the ViT of embedded:openmoji-vit")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--work", type=Path, required=True, help="folder for weights per epoch")
    parser.add_argument("--pretrained", type=Path, help="masked.safetensors of an earlier run")
    parser.add_argument("--places", type=Path, help="places.safetensors of an earlier run")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for folder in (arguments.out, arguments.work):
        folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    model = train(
        arguments.pretrained,
        arguments.places,
        arguments.work,
        lambda line: print(line, flush=True),
    )
    result = save(model, arguments.out)
    print("\n".join(f"{name}: {value}" for name, value in result.items()))
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
