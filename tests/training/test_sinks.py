"""Sinks write with the real libraries, each run in a process of its own; what they wrote is read
back from their files."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager

import pytest

from saekit.errors import MissingError, UsageError
from saekit.training.sinks import SINKS, check_sinks, open_sinks

SETTINGS = {"k": 32, "store": "acts"}
RUN = """
import json, os, signal, sys, time
from pathlib import Path

from saekit.training.sinks import open_sinks


def state():
    signals = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    return dict(os.environ), sys.exit, sys.excepthook, signals


specs, outs, settings, resumed, lines, killed_after = json.loads(sys.argv[1])
before = state()
sinks = [sink for out in outs for sink in open_sinks(specs, Path(out), settings, resumed)]
for line in lines:
    for sink in sinks:
        sink.write(line)
if killed_after is not None:
    time.sleep(killed_after)
    os.kill(os.getpid(), signal.SIGKILL)
for sink in sinks:
    sink.close()
assert state() == before
"""
# Each tempts a library to upload, and none may.
TEMPTING = {
    "WANDB_MODE": "online",
    "WANDB_API_KEY": "k" * 40,
    "TRACKIO_SPACE_ID": "nobody/none",
    "HF_TOKEN": "hf_none",
}


def installed(name):
    return pytest.param(
        name,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(name.partition(":")[0]) is None,
            reason=f"{name} is not installed",
        ),
    )


EVERY = [installed(name) for name in SINKS]
DELAYED = [installed("wandb"), installed("trackio")]


def lines_at(*steps):
    return [{"step": step, "loss": 1 / step, "dead": None} for step in steps]


def write(home, specs, lines, outs=("a",), resumed=0, killed_after=None, **environment):
    """Write lines to sinks in a new process; the finished process. What libraries keep outside OUT
    they keep in `home`."""
    for out in outs:
        (home / out).mkdir(exist_ok=True)
    asked = json.dumps(
        [specs, [str(home / out) for out in outs], SETTINGS, resumed, lines, killed_after]
    )
    own = {"HOME": str(home), "TRACKIO_DIR": str(home / "trackio"), "HF_HOME": str(home / "hf")}
    environment = {**os.environ, **TEMPTING, **own, **environment}
    return subprocess.run(
        [sys.executable, "-c", RUN, asked],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@contextmanager
def trap():
    """A proxy that answers nothing and notes who called: with this environment every connection to
    another machine goes through it."""
    listener = socket.create_server(("127.0.0.1", 0))
    calls = []

    def listen():
        while True:
            try:
                caller, _ = listener.accept()
            except OSError:
                return
            calls.append(caller.recv(200))
            caller.close()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    proxies = {
        name: address
        for name in (
            "HTTPS_PROXY",
            "HTTP_PROXY",
            "ALL_PROXY",
            "https_proxy",
            "http_proxy",
            "all_proxy",
        )
    }
    yield {**proxies, "NO_PROXY": "", "no_proxy": ""}, calls
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.fixture(scope="module", params=EVERY)
def written(request, tmp_path_factory):
    """(name, home, calls to other machines, finished process) of one run with each sink; its OUT is
    home / a."""
    home = tmp_path_factory.mktemp(request.param)
    lines = [
        {"step": 10, "rows": 2560, "loss": 0.5, "dead": None, "fvu": math.nan},
        {"step": 20, "rows": 5120, "loss": 0.25, "dead": 0.125, "fvu": math.inf},
    ]
    with trap() as (proxies, calls):
        done = write(home, [request.param], lines, **proxies)
    return request.param, home, calls, done


def figures_of(name, out):
    """[(step, figures)] in the order of the files, as the library that wrote them keeps them."""
    return {"tensorboard": in_event_files, "wandb": in_offline_runs, "trackio": in_database}[name](
        out
    )


def in_event_files(out):
    events, rows = events_of(out), []
    for tag in events.Tags()["scalars"]:
        seen = Counter()
        for event in events.Scalars(tag):  # a second value for a step makes a second row
            row = (event.step, seen[event.step])
            seen[event.step] += 1
            rows.append((row, tag, event.value))
    keys = sorted({row for row, _, _ in rows})
    return [(key[0], {tag: value for row, tag, value in rows if row == key}) for key in keys]


def events_of(out):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(out / "tensorboard")).Reload()


def wandb_records(out):
    """The records of a .wandb file: a header of seven bytes, then LevelDB's log format (blocks of
    32 KiB) around protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(out.glob("wandb/offline-run-*/*.wandb")):
        data, at, held = path.read_bytes(), 7, b""
        assert data[:4] == b":W&B"
        while at + 7 <= len(data):
            left = 32_768 - at % 32_768
            if left < 7:
                at += left
                continue
            _, length, kind = struct.unpack("<IHB", data[at : at + 7])
            held += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # whole, or the last part
                yield Record.FromString(held)
                held = b""


def in_offline_runs(out):
    rows = []
    for record in wandb_records(out):
        if record.HasField("history"):
            items = {
                item.key or item.nested_key[0]: json.loads(item.value_json)
                for item in record.history.item
            }
            rows.append(
                (
                    record.history.step.num,
                    {name: value for name, value in items.items() if name[0] != "_"},
                )
            )
    return rows


def in_database(out):
    rows = sqlite3.connect(out.parent / "trackio" / "saekit.db").execute(
        "SELECT step, metrics FROM metrics ORDER BY id"
    )
    return [(step, json.loads(metrics)) for step, metrics in rows]


def runs_of(home):
    """(id, name) of the run of every line."""
    return list(
        sqlite3.connect(home / "trackio" / "saekit.db").execute(
            "SELECT run_id, run_name FROM metrics"
        )
    )


def test_figures_arrive_and_those_without_a_value_are_left_out(written):
    name, home, _, _ = written
    assert figures_of(name, home / "a") == [
        (10, {"rows": 2560, "loss": 0.5}),
        (20, {"rows": 5120, "loss": 0.25, "dead": 0.125}),
    ]


def test_a_bare_name_calls_no_other_machine_whatever_the_environment_says(written):
    assert written[2] == []


def test_nothing_is_printed_to_stdout_and_the_process_is_left_as_it_was(written):
    done = written[3]
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_settings_stand_beside_the_curves(written):
    name, home, _, _ = written
    if name == "tensorboard":
        (text,) = events_of(home / "a").Tensors("settings/text_summary")
        assert "| k | 32 |" in text.tensor_proto.string_val[0].decode()
    elif name == "wandb":
        (about,) = [record.run for record in wandb_records(home / "a") if record.HasField("run")]
        assert (about.project, about.display_name) == ("saekit", "a")
        assert (
            SETTINGS.items()
            <= {item.key: json.loads(item.value_json) for item in about.config.update}.items()
        )
    else:
        ((config,),) = sqlite3.connect(home / "trackio" / "saekit.db").execute(
            "SELECT config FROM configs"
        )
        assert SETTINGS.items() <= json.loads(config).items()


@pytest.mark.parametrize("name", EVERY)
def test_a_run_that_was_killed_and_resumed_has_every_step_once(name, tmp_path):
    """Killed before its first saved state; then stopped ten steps after its last one."""
    # a killed run may lack its last second with the other two
    wait = 0 if name == "tensorboard" else 2.0
    assert (
        write(tmp_path, [name], lines_at(10, 20), killed_after=wait).returncode == -signal.SIGKILL
    )
    for resumed, steps in ((0, (10, 20, 30)), (20, (30, 40))):
        done = write(tmp_path, [name], lines_at(*steps), resumed=resumed)
        assert done.returncode == 0, done.stderr
    found = figures_of(name, tmp_path / "a")
    assert [step for step, _ in found] == [10, 20, 30, 40]
    assert [figures["loss"] for _, figures in found] == pytest.approx(
        [1 / 10, 1 / 20, 1 / 30, 1 / 40]
    )
    if name == "wandb":  # `wandb sync` joins the parts of one run by its id
        assert (
            len(
                {
                    record.run.run_id
                    for record in wandb_records(tmp_path / "a")
                    if record.HasField("run")
                }
            )
            == 1
        )
    if name == "trackio":
        assert len(set(runs_of(tmp_path))) == 1


@pytest.mark.parametrize("name", DELAYED)
def test_runs_open_at_the_same_time_stay_apart(name, tmp_path):
    done = write(tmp_path, [name], lines_at(10, 20), outs=("a", "b"))
    assert done.returncode == 0, done.stderr
    a, b = (json.loads((tmp_path / out / f"{name}.json").read_text())[""]["run"] for out in "ab")
    assert a != b
    if name == "wandb":
        assert (
            [step for step, _ in figures_of(name, tmp_path / "a")]
            == [step for step, _ in figures_of(name, tmp_path / "b")]
            == [10, 20]
        )
    else:
        assert sorted(runs_of(tmp_path)) == sorted(2 * [(a, f"a-{a}"), (b, f"b-{b}")])


@pytest.mark.parametrize("written", [installed("wandb")], indirect=True)
def test_an_offline_run_of_wandb_has_nothing_of_the_machine(written):
    fields = {record.WhichOneof("record_type") for record in wandb_records(written[1] / "a")}
    assert "history" in fields and not fields & {
        "stats",
        "output",
        "output_raw",
        "environment",
        "files",
    }


@pytest.mark.parametrize("written", DELAYED, indirect=True)
def test_an_upload_is_tried_and_its_failure_named(written, tmp_path):
    """And so the trap catches what the test of bare names says does not happen."""
    name, home, _, _ = written
    target = {"wandb": "sparse", "trackio": "me/curves"}[name]
    spec = f"{name}:{target}"
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    with trap() as (proxies, calls):
        impatient = {
            "WANDB_INIT_TIMEOUT": "2",
            "WANDB__GRAPHQL_RETRY_MAX": "1",
            "WANDB__GRAPHQL_RETRY_WAIT_MAX_SECONDS": "0.1",
        }
        done = write(tmp_path, [spec], lines_at(10), **impatient, **proxies)
    assert f'MissingError: log="{spec}"' in done.stderr and done.stdout == ""
    assert any(call.startswith(b"CONNECT") for call in calls)
    local, uploaded = (
        json.loads((tmp_path / "a" / f"{name}.json").read_text())[key] for key in ("", target)
    )
    assert (local["step"], uploaded["step"]) == (20, 0) and local["run"] != uploaded["run"]


def test_an_unknown_sink_is_refused_with_the_known_ones():
    with pytest.raises(
        UsageError, match=r'log="wnadb": did you mean wandb\? choose tensorboard, wandb, trackio'
    ):
        check_sinks(["wnadb"])
    with pytest.raises(UsageError, match='log="tensorboard:x": tensorboard uploads nothing'):
        check_sinks(["tensorboard:x"])
    with pytest.raises(UsageError, match='log="wandb:": no name after the colon'):
        check_sinks(["wandb:"])
    with pytest.raises(UsageError, match='log="wandb" is given twice'):
        check_sinks(["wandb", "wandb:sparse"])
    check_sinks([])


@pytest.mark.parametrize("name", SINKS)
def test_a_sink_whose_package_is_absent_names_what_to_install(name, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingError, match=f'log="{name}" needs the package {name}') as caught:
        open_sinks([name], tmp_path, SETTINGS, 0)
    assert caught.value.hint == "pip install 'saekit[loggers]'" and not any(tmp_path.iterdir())


def test_importing_the_training_package_imports_no_sink():
    code = (
        "import sys, saekit.training.run, saekit.training.sinks; print(sorted({'tensorboard',"
        " 'wandb', 'trackio'} & set(sys.modules)))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )
