"""Names of sae-lens' own registry: each resolves as sae-lens resolves it, and opens with the same
numbers."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hub_client import Client
from made_dictionaries import saelens
from stand_in_hub import stand_in_hub

from saekit import dictionaries
from saekit.errors import DataError
from saekit.interop.opening import FORMATS, format_of
from saekit.interop.registry import entries, resolve

directory = pytest.importorskip("sae_lens.loading.pretrained_saes_directory")
RELEASES = {  # release -> a dictionary of it, and the architecture of our fixture
    "gpt2-small-res-jb": ("blocks.8.hook_resid_pre", "standard"),
    "gpt2-small-mlp-tm": ("blocks.0.hook_mlp_out", "standard"),  # a factor of the registry
    "mistral-7b-res-wg": ("blocks.8.hook_resid_pre", "topk"),  # another normalization
    "gemma-2-2b-res-matryoshka-dc": ("blocks.0.hook_resid_post", "jumprelu"),
}
# codes and x_hat in float64, of both in one process
COMPARE = """
import json, sys, torch, saekit
from sae_lens import SAE
x, result = torch.randn(32, 16, generator=torch.Generator().manual_seed(0)), {}
for release, id in NAMES.items():
    theirs = SAE.from_pretrained(release, id, device="cpu", dtype="float64")
    ours = saekit.load(f"saelens:{release}/{id}").double()
    with torch.no_grad():
        z, x_hat = theirs.encode(x.double()), theirs(x.double())
        output = ours(x.double())
    code = output.code if isinstance(output.code, torch.Tensor) else output.code.to_dense()
    pairs = (code, z.to_dense()), (output.x_hat, x_hat)
    result[release] = [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]
print(json.dumps(result))
"""


def test_every_name_resolves_to_the_place_that_sae_lens_says_or_is_refused_by_name(monkeypatch):
    monkeypatch.delenv("SAEKIT_REGISTRY", raising=False)
    theirs = {
        f"saelens:{release}/{id}": (lookup.repo_id, path)
        for release, lookup in directory.get_pretrained_saes_directory().items()
        for id, path in lookup.saes_map.items()
    }
    listed = {entry.name: entry for entry in entries()}
    assert {name: (entry.repo, entry.path) for name, entry in listed.items()} == theirs
    assert [row.name for row in dictionaries()] == list(theirs)
    refused, formats = Counter(), Counter()
    for entry in listed.values():
        try:
            formats[format_of(entry)] += 1
        except DataError as error:
            assert entry.loader in str(error)
            refused[entry.loader] += 1
    assert formats.keys() <= FORMATS.keys() and sum(formats.values()) == 13_831
    assert refused == {"mntss_clt_layer_transcoder": 26}
    for release, (id, _) in RELEASES.items():
        assert resolve(f"saelens:{release}/{id}") == listed[f"saelens:{release}/{id}"]


def test_names_open_with_the_numbers_of_sae_lens(tmp_path):
    with stand_in_hub() as hub:
        for release, (id, architecture) in RELEASES.items():
            entry = resolve(f"saelens:{release}/{id}")
            settings = {"normalize_activations": "expected_average_only_in"}
            source = saelens(tmp_path / release, architecture, **settings)
            hub.add(entry.repo, source, entry.path)
        client = Client(hub.url, tmp_path / "home")
        names = {release: id for release, (id, _) in RELEASES.items()}
        result = client.python(f"NAMES = {names!r}\n{COMPARE}")
        client.close()
    differences = json.loads(result.out.splitlines()[-1])
    assert differences.keys() == RELEASES.keys()
    assert all(value < 1e-12 for pair in differences.values() for value in pair), differences
