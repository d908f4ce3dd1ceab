"""`saekit serve` as a process: its address, Ctrl-C, and what it refuses before it starts."""

from __future__ import annotations

import importlib.util
import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from command import saekit
from huggingface_hub import constants


def test_ctrl_c_ends_it_while_a_text_is_written(made):
    # Ctrl-C of a terminal, whatever the parent of this test ignores
    starts = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        " from saekit_cli.app import main; main(sys.argv[1:])"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", starts, "serve", made.run, "--store", made.store, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        told = json.loads(server.stdout.readline())
        assert told["url"].startswith(f"http://127.0.0.1:{told['port']}/")
        question = {
            "prompt": "the", "latents": {"3": 1}, "max_new_tokens": 500, "temperature": 5.0,
        }  # fmt: skip
        request = urllib.request.Request(told["url"] + "steer", json.dumps(question).encode())
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.loads(answer.readline())["kind"] == "clean"
            server.send_signal(signal.SIGINT)
            answer.read()
        out, err = server.communicate(timeout=30)
    finally:
        server.kill()
        server.wait()
    assert server.returncode == 130
    assert out == b""
    # nothing went wrong, and nothing is to be done
    assert err.endswith(b"note    the server has stopped, and its port is free\n"), err.decode()
    assert not any(word in err for word in (b"error", b"try ", b"Traceback")), err.decode()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(told["url"], timeout=5)


def test_a_port_that_is_taken_is_known_before_the_model_loads(capsys, made):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        status, out, err = saekit(capsys, "serve", made.run, "--port", port)
    assert (status, out) == (3, "")
    assert f"error  --port {port}: Address already in use" in err
    assert "loading" not in err


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--port", 65536], 2, "--port 65536 must be between 1 and 65535"),
        (["--port", 0], 2, "--port 0 must be between 1 and 65535"),
        (["--queue", 0], 2, "--queue 0 must be at least 1"),
        (["--page", "nowhere"], 2, "--page needs the store of the page"),
        (["--model", "nowhere/at-all"], 4, "nowhere/at-all"),
    ],
    ids=str,
)
def test_what_cannot_be_served_is_said(capsys, monkeypatch, made, options, status, words):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    result = saekit(capsys, "serve", made.run, *options)
    assert result[0] == status and words in result[2], result


def test_models_without_tokens_are_refused(capsys, digits, tmp_path):
    from made_runs import trained

    run = trained(digits, tmp_path / "run", "sae", latents=16, k=2)
    status, _, err = saekit(capsys, "serve", run, "--store", digits)
    assert status == 3 and "there is no model to run" in err
    status, _, err = saekit(capsys, "serve", run)
    assert status == 3 and "there is no model to run" in err


def test_without_the_extra_it_says_how_to_install_it(capsys, monkeypatch, made):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "uvicorn" else real(name)
    )
    status, _, err = saekit(capsys, "serve", made.run)
    assert status == 4
    assert "error  serve needs uvicorn" in err
    assert "try    pip install 'saekit[serve]'" in err
