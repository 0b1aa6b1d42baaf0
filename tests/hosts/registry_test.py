"""Names, paths and identities of hosts."""

import json

import jax
import pytest

from jaxsae import hosts, packages
from jaxsae.errors import HostError
from jaxsae.hosts import registry
from jaxsae.testing.tiny_host import tiny_host


def test_a_named_host_comes_from_its_package(monkeypatch, tmp_path):
    assert "smollm2-135m" in hosts.names()
    asked = []
    monkeypatch.setattr(packages, "package_file", lambda package: asked.append(package) or tmp_path)
    assert hosts.fetch("smollm2-135m") == tmp_path
    assert asked == [packages.SMOLLM2_135M]


def test_a_path_is_itself(tmp_path):
    assert hosts.fetch(tmp_path) == tmp_path
    assert hosts.fetch(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["hf://owner/name", "owner/name", "hf://owner/name@v1.0"])
def test_a_hub_name_is_fetched_without_other_files(name, monkeypatch, tmp_path):
    import huggingface_hub

    asked = {}
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda repo, **options: asked.update(options, repo=repo) or str(tmp_path)
    )
    assert hosts.fetch(name) == tmp_path
    assert asked["repo"] == "owner/name"
    assert asked["revision"] == ("v1.0" if "@" in name else None)
    assert "config.json" in asked["allow_patterns"]
    assert not any(pattern.endswith((".bin", ".pt", ".py", "*")) for pattern in asked["allow_patterns"])


def test_a_hub_that_cannot_be_reached_is_one_sentence():
    with pytest.raises(HostError) as e:  # the tests run with the hub client offline
        hosts.load("hf://some-owner/some-model")
    assert "'some-owner/some-model' could not be fetched" in str(e.value)
    assert "\n" not in str(e.value)


def test_an_unknown_name_says_what_is_possible(tmp_path):
    with pytest.raises(HostError, match="did you mean 'smollm2-135m'"):
        hosts.load("smollm2-135")
    with pytest.raises(HostError, match="no file or folder has that path"):
        hosts.load(str(tmp_path / "absent" / "deep" / "model.gguf"))
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(HostError, match="neither"):
        hosts.load(tmp_path / "model.bin")
    with pytest.raises(HostError, match="'float16'"):
        hosts.load(tmp_path, dtype="float16")
    with pytest.raises(HostError, match="'fp32'"):
        hosts.load(tmp_path, dtype="fp32")


def test_an_identity_survives_json_and_knows_its_host():
    host = tiny_host(rope_divisors=(1.0, 2.0, 3.0, 4.0))
    identity = json.loads(json.dumps(host.identity))
    assert host.matches(identity)
    assert host.matches({**identity, "name": "renamed", "dtype": "bfloat16"})
    assert not host.matches({**identity, "digest": "0" * 64})
    assert not host.matches({**identity, "rope_base": 1.0})
    assert not host.matches({})
    assert not tiny_host(jax.random.key(1), rope_divisors=(1.0, 2.0, 3.0, 4.0)).matches(identity)
    assert tiny_host(rope_divisors=(1.0, 2.0, 3.0, 4.0)).matches(identity)


def test_every_named_host_is_a_file_the_loader_knows():
    assert all(package.member.endswith(".gguf") for package in registry._NAMED.values())
