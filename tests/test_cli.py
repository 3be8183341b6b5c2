"""The command line: what it accepts, what it prints, how it fails."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from scripted_agent import damage, write_image
from supervised import ROOT, Workspace

from crhpc import __version__, cli, errors
from crhpc.resume import Mode

JOB = {"id": "0123456789abcdef", "argv": ["mpirun", "./app"], "cwd": "/work", "directory": "/images", "started": 1.0,
       "tasks": 4}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("CRHPC_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def images(tmp_path):
    for number in (1, 2, 3):
        write_image(tmp_path / "images" if number > 1 else made(tmp_path / "images"), number, JOB, {"frozen": 0.5})
    return tmp_path / "images"


def made(path: Path) -> Path:
    path.mkdir(mode=0o700)
    return path


# -- the grammar ------------------------------------------------------------------------------------
@pytest.mark.parametrize(("words", "command"), [
    (["run", "--", "app", "-v", "--dir", "x"], ["app", "-v", "--dir", "x"]),
    (["run", "app", "-v"], ["app", "-v"]),
    (["run", "-v", "app"], ["app"]),
    (["run", "--", "sh", "-c", "x", "--", "y"], ["sh", "-c", "x", "--", "y"]),
    (["run", "sh", "-c", "x", "--", "y"], ["sh", "-c", "x", "--", "y"]),
    (["run", "--", "--", "x"], ["--", "x"]),
    (["run"], []),
    (["run", "--"], []),
])
def test_the_command_is_left_as_it_is(words, command):
    assert cli.parse(words).command == command


def test_options_of_run():
    args = cli.parse(["run", "--dir", "d", "--every", "1.5m", "--keep", "3", "--resume", "never", "--wait-all", "-v",
                      "--memory", "1G", "--level", "-3", "--", "x"])
    assert (args.dir, args.every, args.keep, args.resume, args.wait_all, args.verbose, args.memory, args.level) == (
        Path("d"), 90.0, 3, Mode.NEVER, True, True, 1 << 30, -3)


def test_defaults_and_environment(monkeypatch):
    args = cli.parse(["run", "--", "x"])
    assert (args.dir, args.every, args.keep, args.resume, args.memory) == (
        Path("checkpoints"), 600.0, 2, Mode.AUTO, 256 << 20)
    for name, value in (("CRHPC_DIR", "/d"), ("CRHPC_EVERY", "0"), ("CRHPC_KEEP", "5")):
        monkeypatch.setenv(name, value)
    args = cli.parse(["run", "--", "x"])
    assert (args.dir, args.every, args.keep) == (Path("/d"), None, 5)
    assert cli.parse(["restart", "d"]).every is None
    assert cli.parse(["status"]).dir == cli.parse(["checkpoint"]).dir == cli.parse(["list"]).dir == Path("/d")
    assert cli.parse(["status", "d"]).dir == Path("d")


@pytest.mark.parametrize(("text", "value"), [
    ("30", 30.0), ("30s", 30.0), ("5m", 300.0), ("1.5h", 5400.0), ("2d", 172800.0), ("0", None), ("0.25", 0.25)])
def test_seconds(text, value):
    assert cli.seconds(text) == value


@pytest.mark.parametrize(("text", "value"), [
    ("1000", 1000), ("256M", 256 << 20), ("256MiB", 256 << 20), ("1.5g", 3 << 29), ("1KB", 1024)])
def test_bytes(text, value):
    assert cli.count_of_bytes(text) == value


@pytest.mark.parametrize("words", [
    [], ["nonsense"], ["run", "--every", "soon", "--", "x"], ["run", "--every", "-1", "--", "x"],
    ["run", "--every", "nan", "--", "x"], ["run", "--every", "inf", "--", "x"], ["run", "--every", "", "--", "x"],
    ["run", "--keep", "-1", "--", "x"], ["run", "--keep", "few", "--", "x"], ["run", "--resume", "maybe", "--", "x"],
    ["run", "--memory", "lots", "--", "x"], ["run", "--di", "x", "--", "x"], ["restart"], ["verify"], ["run"],
    ["run", "--"],
    ["status", "a", "b"]])
def test_nonsense(words, capsys):
    assert cli.main(words) == 64
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("crhpc: ")
    assert "Cure: " in err
    assert err.count("\n") == 1


def test_nonsense_in_the_environment(monkeypatch, capsys):
    monkeypatch.setenv("CRHPC_EVERY", "soon")
    assert cli.main(["run", "--", "true"]) == 64
    assert "--every" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"crhpc {__version__}\n"


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in ("run", "restart", "checkpoint", "status", "list", "verify", "show", "doctor"))
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    assert "--memory" in capsys.readouterr().out


def test_a_program_that_is_not_there(tmp_path, capsys):
    assert cli.main(["run", "--dir", str(tmp_path / "d"), "--", "no-such-program"]) == 127
    assert capsys.readouterr().err == "crhpc: cannot start no-such-program: there is no such program\n"


# -- images -----------------------------------------------------------------------------------------
def test_list(images, capsys):
    damage(images / "ckpt-000002")                       # only verify finds this
    (images / "ckpt-000003" / "shard-0.h5").write_bytes(b"short")
    assert cli.main(["list", str(images), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["number"], row["state"], row["tasks"], row["job"]) for row in rows] == [
        (1, "ok", 4, JOB["id"]), (2, "ok", 4, JOB["id"]), (3, "damaged", 4, JOB["id"])]
    assert rows[0]["path"] == str(images / "ckpt-000001")
    files = [(images / "ckpt-000001" / name).stat().st_size for name in ("master.h5", "shard-0.h5")]
    assert rows[0]["size"] == sum(files)
    (images / "ckpt-000002" / "manifest.json").write_text("{}")
    assert cli.main(["list", str(images)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["number", "1", "2", "3"]
    assert lines[2].split()[-1] == "damaged"


def test_list_of_nothing(tmp_path, capsys):
    assert cli.main(["list", str(tmp_path), "--json"]) == 0
    assert capsys.readouterr().out == "[]\n"
    assert cli.main(["list", str(tmp_path)]) == 0
    assert capsys.readouterr() == ("", f"crhpc: no checkpoints in {tmp_path}\n")


def test_verify(images, capsys):
    image = images / "ckpt-000001"
    assert cli.main(["verify", str(image)]) == 0
    assert capsys.readouterr().out.startswith(f"{image}: ok, 1 node, ")
    damage(image)
    assert cli.main(["verify", str(image)]) == 75
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{image} is damaged: shard-0.h5" in err
    assert err.count("\n") == 1
    assert cli.main(["verify", str(images / "ckpt-000009")]) == 75


def test_show(images, capsys):
    image = str(images / "ckpt-000001")
    assert cli.main(["show", image]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "frozen: 0.5" in lines
    assert any(line.split()[:2] == ["nodes", "group"] for line in lines)
    assert cli.main(["show", image, "/job"]) == 0
    assert "cwd: /work" in capsys.readouterr().out
    assert cli.main(["show", image, "/nodes/0/pages/runs"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert "npages" in head
    assert len(rows) == 1
    assert cli.main(["show", image, "/nowhere"]) == 64
    assert cli.main(["show", str(images)]) == 75


def test_restart_of_nothing(tmp_path, capsys):
    assert cli.main(["restart", str(tmp_path / "missing")]) == 75
    assert cli.main(["restart", str(made(tmp_path / "empty"))]) == 75
    assert "no usable checkpoint in" in capsys.readouterr().err


def test_restart_of_an_image_of_no_job(tmp_path, capsys):
    write_image(tmp_path, 1, {"strange": 1}, {})
    assert cli.main(["restart", str(tmp_path / "ckpt-000001")]) == 75
    assert "its manifest names no job" in capsys.readouterr().err


# -- failures ---------------------------------------------------------------------------------------
def test_an_internal_error_is_one_line(monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("two\nlines")
    monkeypatch.setattr(cli, "ask_status", fail)
    assert cli.main(["status"]) == 70
    assert capsys.readouterr().err == "crhpc: internal error: RuntimeError: two lines (CRHPC_LOG=debug shows where)\n"
    monkeypatch.setenv("CRHPC_LOG", "debug")
    assert cli.main(["status"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(cli, "ask_status", interrupt)
    assert cli.main(["status"]) == 130


@pytest.mark.parametrize("object", ["/", "/nowhere"])
def test_a_reader_that_has_seen_enough(images, object):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "crhpc", "show", str(images / "ckpt-000001"), object], cwd=ROOT,
                          stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert done.returncode == (64 if object == "/nowhere" else 0)
    assert b"BrokenPipe" not in done.stderr


def test_a_working_directory_that_is_gone(tmp_path):
    space = Workspace(made(tmp_path / "w"))
    gone = made(tmp_path / "gone")
    code = f"import os, sys; os.rmdir({str(gone)!r}); from crhpc import cli; sys.exit(cli.main(['run', '--', 'true']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=gone, env=space.environment(), capture_output=True,
                          check=False)
    assert done.returncode == 64
    assert b"the working directory is gone" in done.stderr


def test_every_error_has_a_message_and_a_documented_code():
    def all_of(kind):
        for sub in kind.__subclasses__():
            yield sub
            yield from all_of(sub)
    for kind in all_of(errors.CrhpcError):
        assert kind.__doc__
        assert 64 <= kind.code <= 78 or kind.code == 127, kind
