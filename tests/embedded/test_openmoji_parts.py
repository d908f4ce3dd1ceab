"""Which parts a drawing of an emoji shows, and the network that learns where they are."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from saekit.embedded.openmoji.parts import FILE, UNCLEAR, VISIBLE, names_of, parts
from saekit.embedded.openmoji.table import table
from saekit.embedded.openmoji_vit import places
from saekit.embedded.openmoji_vit.places import Places, log_odds, other_colors, with_parts

NAMES = [emoji.name for emoji in table()]


def test_every_name_of_the_table_is_an_emoji_of_its_subgroup_and_said_once():
    subgroups: dict[str, list[str]] = {}
    for emoji in table():
        subgroups.setdefault(emoji.subgroup, []).append(emoji.name)
    said: Counter[tuple[str, str]] = Counter()
    for line in FILE.read_text(encoding="utf-8").splitlines():
        part, seen, subgroup, entry = line.split("\t")
        assert seen in (VISIBLE, UNCLEAR) and subgroup in subgroups, line
        listed = [each for each in entry.removeprefix("*").removeprefix(" - ").split(" | ") if each]
        assert set(listed) <= set(subgroups[subgroup]), line
        said.update((part, name) for name in names_of(entry, subgroups[subgroup]))
    assert set(said.values()) == {1}, [each for each, count in said.items() if count > 1]
    assert said.total() == sum(len(names) for names in parts().values())


def test_the_table_says_what_the_drawings_show():
    for part, name in (
        ("wheel", "bicycle"), ("wheel", "woman in manual wheelchair"), ("stripes", "zebra"),
        ("stripes", "barber pole"), ("stripes", "flag: United States"), ("leaf", "peach"),
        ("hand", "waving hand"), ("eye", "frog"), ("window", "school"), ("heart", "love hotel"),
    ):  # fmt: skip
        assert parts()[part][name] == VISIBLE, (part, name)
    assert parts()["stripes"]["flag: Germany"] == UNCLEAR  # three bands
    assert "crab" not in parts()["wheel"] and "flag: Japan" not in parts()["stripes"]
    assert names_of("* - b | c", ["a", "b", "c", "d"]) == ["a", "d"]
    assert names_of("*", ["a", "b"]) == ["a", "b"] and names_of("b | a", ["a"]) == ["b", "a"]


def test_emoji_are_drawn_by_part():
    bicycle, crab, zebra = (NAMES.index(name) for name in ("bicycle", "crab", "zebra"))
    drawn = with_parts([crab, bicycle, zebra], 90, torch.Generator().manual_seed(0))
    counts = Counter(drawn)
    visible = {e: sum(parts()[p].get(NAMES[e]) == VISIBLE for p in parts()) for e in counts}
    assert set(counts) <= {bicycle, crab, zebra} and all(visible.values())
    assert counts[bicycle] > 3 and counts[zebra] > 3


def test_some_patch_shows_a_part_unless_none_does():
    logp_BTP = torch.tensor([[[0.5, 1e-9], [0.5, 1e-9], [0.2, 1e-9]]]).log()
    some = 1 - 0.5 * 0.5 * 0.8
    odds_P = log_odds(logp_BTP)[0]
    torch.testing.assert_close(odds_P[0], torch.tensor(some / (1 - some)).log())
    assert odds_P[1] < -15


def test_a_patch_sees_17_pixels_around_its_middle_and_nothing_when_blank():
    torch.manual_seed(0)
    network = Places()
    x_BCHW = torch.rand(1, 3, 72, 72, requires_grad=True)
    network(x_BCHW)[0, 4 * 9 + 3].sum().backward()  # pixels 32 to 39 down, 24 to 31 right
    assert x_BCHW.grad is not None
    down, right = x_BCHW.grad[0].abs().sum(0).nonzero().unbind(1)
    assert (down.min(), down.max()) == (28, 44) and (right.min(), right.max()) == (20, 36)
    assert (network(torch.ones(1, 3, 72, 72)) == places.IMPOSSIBLE).all()


def test_targets_have_only_parts_that_the_emoji_shows():
    torch.manual_seed(0)
    network, wheel = Places(), list(parts()).index("wheel")
    x_BCHW = torch.rand(2, 3, 72, 72)
    emoji = [NAMES.index("bicycle"), NAMES.index("crab")]
    logp_BTP = network(x_BCHW).detach()
    shift = torch.zeros_like(logp_BTP)
    shift[..., wheel] = 2.0 - logp_BTP[..., wheel].amax() - 3.0  # the most likely patch has e^-1
    network.forward = lambda x_BCHW: logp_BTP + shift
    targets = network.targets(x_BCHW, emoji)
    assert targets[0, :, wheel].max() == pytest.approx(places.MOST, abs=1e-4)
    ratio = targets[0, :, wheel] / (logp_BTP + shift)[0, :, wheel].exp()
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
    assert targets[1, :, wheel].max() == 0


def test_colors_change_places_and_no_pixel_is_lost():
    x_BCHW = torch.rand(12, 3, 72, 72)
    changed = other_colors(x_BCHW, torch.Generator().manual_seed(0))
    torch.testing.assert_close(changed.sum((1, 2, 3)), x_BCHW.sum((1, 2, 3)))
    same = [bool((a == b).all()) for a, b in zip(changed, x_BCHW, strict=True)]
    assert 0 < sum(same) < 12


def test_places_are_learned_from_what_the_pictures_show(monkeypatch):
    """Reference: rings are drawn at places that the network is not told; pictures without a ring
    have a filled square instead, and every picture has a second square."""
    torch.manual_seed(0)
    count, generator = 96, torch.Generator().manual_seed(1)
    rings = torch.arange(count) % 2
    visible_EP = torch.zeros(count, len(parts()))
    visible_EP[:, 0] = rings
    monkeypatch.setattr(places, "shown", lambda: (visible_EP, torch.ones_like(visible_EP)))
    x_BCHW, where = torch.ones(count, 3, 72, 72), []
    for picture in range(count):
        first, second = torch.randperm(81, generator=generator)[:2].tolist()
        for number, place in enumerate((first, second)):
            y, x = (8 * each for each in divmod(place, 9))
            x_BCHW[picture, :, y : y + 8, x : x + 8] = -1
            if number == 0 and rings[picture]:
                x_BCHW[picture, :, y + 2 : y + 6, x + 2 : x + 6] = 1
        where.append(first)
    network = Places()
    optimizer = torch.optim.AdamW(network.parameters(), places.RATE)
    for step in range(40):
        emoji = torch.arange(step % 4, count - 32, 4).tolist()  # 32 pictures stay held out
        loss = network.loss(x_BCHW[emoji], emoji)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held_out = torch.arange(count - 32, count)
    logp_BT = network(x_BCHW[held_out])[..., 0]
    has = rings[held_out] == 1
    assert logp_BT[has].amax(1).min() > logp_BT[~has].amax(1).max()
    found = logp_BT.argmax(1)[has]
    assert (found == torch.tensor(where)[held_out][has]).float().mean() > 0.9
