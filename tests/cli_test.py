"""Every command explains itself, and one wrong input per command ends in one clear sentence."""

import subprocess
import sys

import pytest

from jaxsae.cli.main import COMMANDS, main


def call(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    out = capsys.readouterr()
    return stop.value.code, out.out, out.err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_the_options(name, capsys):
    status, out, _ = call(capsys, *name.split(), "--help")
    assert status == 0
    assert f"jaxsae {name}" in out
    assert "required" not in out.lower() or name in ("train", "eval", "report", "convert", "plan")


def test_the_front_page_names_every_command(capsys):
    status, out, _ = call(capsys, "--help")
    assert status == 0
    assert all(name in out for name in COMMANDS)
    assert call(capsys)[0] == 2


WRONG = {
    "quickstart": (["--k", "9000"], "k must lie between 1 and d_sae = 8192, found 9000"),
    "harvest": (["--host", "no-such-model"], "no-such-model"),
    "train": (["--cache", "nowhere", "recipe:topk", "--recipe.d-sae", "64"], "nowhere"),
    "eval": (["nowhere"], "there is no run and no dictionary at"),
    "report": (["nowhere"], "there is no run and no dictionary at"),
    "convert": (["nowhere", "there", "--to", "sae_lens"], "nowhere"),
    "plan": (["nowhere.yaml"], "'nowhere.yaml' cannot be read"),
    "science": (["--only", "A99"], "there is no study of 'A99'"),
    "science frontier": (["--only", "topkk"], "the frontier has no family 'topkk'"),
    "bench train": (["--shape", "nonsense"], "no shape 'nonsense'; possible: A, B, C"),
    "bench fleet": (["--members", "0"], "members must be at least 1, found 0"),
    "bench kernels": (["--shape", "nonsense"], "no shape 'nonsense'; possible: A, B, C"),
    "bench methods": (["--only", "nonsense"], "no method 'nonsense'"),
    "doctor": (["--config", "nowhere.yaml"], "'nowhere.yaml' cannot be read"),
    "bench stream": (["--config", "nowhere.yaml"], "'nowhere.yaml' cannot be read"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_ends_in_one_sentence(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args, message = WRONG[name]
    status, _, err = call(capsys, *name.split(), *args)
    assert status == 1
    assert "jaxsae: error:" in err
    assert message in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) <= 3
    assert not list(tmp_path.iterdir())  # nothing is left behind


def test_a_file_that_cannot_be_written_is_named_in_one_sentence(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, err = call(capsys, "doctor", "--json-path", str(tmp_path / "file" / "found.json"))
    assert status == 1
    assert f"jaxsae: error: '{tmp_path}/file" in err
    assert "Traceback" not in err


def test_every_command_has_a_wrong_input_here():
    assert set(WRONG) == set(COMMANDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("type: train\ncach: x\n", "'cach' is unknown to Train; did you mean 'cache'"),
        ("type: harvest\n", "is of type 'harvest', which is not what this command takes"),
        ("recipe: {type: recipe.topk, kk: 3}\ncache: x\n", "'recipe.kk' is unknown"),
        ("cache: x\n", "'recipe' is required by Train and missing"),
    ],
)
def test_config_files_that_do_not_fit(text, message, capsys, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    status, _, err = call(capsys, "train", "--config", str(path))
    assert status == 1
    assert message in err


def test_unknown_commands_get_a_hint(capsys):
    assert "did you mean 'train'" in call(capsys, "trian")[2]
    assert "possible: bench fleet, bench kernels" in call(capsys, "bench")[2]


def test_it_runs_as_a_module():
    out = subprocess.run([sys.executable, "-m", "jaxsae", "--version"], capture_output=True, text=True, check=True)
    assert out.stdout.startswith("jaxsae ")
