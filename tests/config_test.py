"""Objects to YAML and back; bad files end in one sentence that names the key."""

import dataclasses
import pathlib
import typing

import pytest

from jaxsae import config
from jaxsae.errors import ConfigError


@config.register("test.inner")
@dataclasses.dataclass(frozen=True)
class Inner:
    k: int = 3


@config.register("test.other")
@dataclasses.dataclass(frozen=True)
class Other:
    k: int = 3


@config.register("test.outer")
@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner | Other = Inner()
    rate: float = 0.1
    names: tuple[str, ...] = ()
    mode: typing.Literal["a", "b"] = "a"
    path: pathlib.Path | None = None
    anything: tuple[typing.Any, ...] = ()


def through_yaml(tmp_path, obj):
    path = tmp_path / "c.yaml"
    path.write_text(config.dump_yaml(obj))
    return config.from_dict(config.read_file(path), type(obj))


def test_round_trip_keeps_class_and_values(tmp_path):
    obj = Outer(Other(5), 2e-4, ("x", "y"), "b", pathlib.Path("runs/a"), (("lr", 1e-3), ("k", 4)))
    again = through_yaml(tmp_path, obj)
    assert again == obj
    assert type(again.inner) is Other  # the same fields, told apart by the tag
    assert type(dict(again.anything)["k"]) is int


def test_scientific_notation_that_yaml_reads_as_text_is_a_number():
    assert config.from_dict({"rate": "1e-3"}, Outer).rate == 1e-3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"inner": {"type": "test.inner", "kk": 1}}, r"'inner.kk' is unknown to Inner; did you mean 'k'"),
        ({"rat": 1}, r"'rat' is unknown to Outer; did you mean 'rate'"),
        ({"rate": "fast"}, r"'rate': expected float, found 'fast'"),
        ({"inner": {"type": "test.iner"}}, r"'inner.type': no class is called 'test.iner'; did you mean 'test.inner'"),
        ({"mode": "c"}, r"'mode': expected one of"),
        ({"names": "x"}, r"'names': expected a list"),
        ({"inner": {"type": "test.inner", "k": 1.5}}, r"'inner.k': expected int, found 1.5"),
        ({"inner": {"type": "test.inner", "k": True}}, r"'inner.k': expected int, found True"),
    ],
)
def test_bad_values_name_their_key(data, message):
    with pytest.raises(ConfigError, match=message):
        config.from_dict(data, Outer)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not valid YAML at line"),
        ("- 1\n- 2", "expected a mapping of keys to values, found list"),
        ("a: 1\na: 2", "'a' stands twice"),
        ("x: !!python/object/apply:os.system ['true']", "is not valid YAML"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        config.read_file(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml' cannot be read"):
        config.read_file(tmp_path / "nowhere.yaml")


def test_two_classes_cannot_share_a_tag():
    with pytest.raises(ConfigError, match="already belongs to Inner"):

        @config.register("test.inner")
        @dataclasses.dataclass(frozen=True)
        class Thief:
            pass
