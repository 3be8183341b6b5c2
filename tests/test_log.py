"""What is said on standard error, at which levels, and what steps count."""
from __future__ import annotations

import logging
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from crhpc import log
from crhpc.log import Steps, configure, logger

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def everything_is_put_back(monkeypatch):
    monkeypatch.delenv("CRHPC_LOG", raising=False)
    root = logging.getLogger("crhpc")
    before = root.handlers[:], root.propagate, root.level
    levels = {name: logging.getLogger(name).level for name in [*logging.root.manager.loggerDict] if "crhpc" in name}
    yield
    root.handlers[:], root.propagate = before[:2]
    root.setLevel(before[2])
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("crhpc.")]:
        logging.getLogger(name).setLevel(levels.get(name, logging.NOTSET))


@pytest.fixture
def package():
    """A name that no package has."""
    return f"p{uuid.uuid4().hex}"


# -- lines --------------------------------------------------------------------------------------------
def test_lines_go_to_standard_error(capsys):
    configure()
    logger("crhpc.engine.node").warning("a %s", "warning")
    logger("crhpc.agent").info("nothing")
    assert capsys.readouterr() == ("", "crhpc: a warning\n")


def test_verbose_shows_the_steps(capsys):
    configure(verbose=True)
    logger("crhpc.agent").info("a step")
    logger("crhpc.agent").debug("nothing")
    assert capsys.readouterr().err == "crhpc: a step\n"


def test_to_configure_twice_does_not_say_all_twice(capsys):
    configure()
    configure()
    logger("crhpc.agent").warning("once")
    assert capsys.readouterr().err == "crhpc: once\n"


def test_what_other_libraries_say_is_their_own_matter(capsys):
    configure(verbose=True)
    logging.getLogger("elsewhere").info("theirs")
    logging.getLogger("crhpcextra").info("theirs too")
    assert capsys.readouterr().err == ""


def test_nothing_is_configured_at_import():
    code = "import logging, crhpc.log, crhpc.agent; l = logging.getLogger('crhpc'); print(l.handlers, l.level)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
                          env=os.environ | {"CRHPC_LOG": "debug"})
    assert (done.stdout, done.stderr) == ("[] 0\n", "")


# -- levels -------------------------------------------------------------------------------------------
def shown(name: str) -> str:
    return logging.getLevelName(logger(name).getEffectiveLevel())


def test_levels_by_module_package_and_for_all(package):
    names = [f"crhpc.{package}.one", f"crhpc.{package}.two", "crhpc.agent"]
    for name in names:
        logger(name)
    for spec, levels in (
            ("", ["WARNING"] * 3), ("debug", ["DEBUG"] * 3), ("one=debug", ["DEBUG", "WARNING", "WARNING"]),
            (f"{package}=info", ["INFO", "INFO", "WARNING"]), ("one=debug,agent=info", ["DEBUG", "WARNING", "INFO"]),
            (" one = debug , INFO ", ["INFO"] * 3), (f"{package}=info, one=ERROR", ["ERROR", "INFO", "WARNING"]),
            ("info,one=error", ["ERROR", "INFO", "INFO"])):
        for name in names:
            logger(name).setLevel(logging.NOTSET)
        logger(f"crhpc.{package}").setLevel(logging.NOTSET)
        configure(environment=spec)
        assert [shown(name) for name in names] == levels, spec


@pytest.mark.parametrize("spec", ["nonsense", "one=", "=", ",,", "one=loud", "one=debug=info", "=,=", "\0", "10"])
def test_nonsense_is_passed_over(spec):
    configure(environment=spec)
    assert shown("crhpc.agent") == "WARNING"


def test_the_beginning_of_a_name_is_not_the_name(package):
    logger(f"crhpc.{package}.one")
    configure(environment=f"{package[:-3]}=debug,on=debug")
    assert shown(f"crhpc.{package}.one") == "WARNING"


def test_modules_that_are_loaded_later_follow_their_package(package):
    """Kinds are found when a node is made, long after the program began."""
    configure(environment=f"{package}=debug")
    assert shown(f"crhpc.{package}.late") == "DEBUG"


def test_the_environment(monkeypatch, capsys):
    monkeypatch.setenv("CRHPC_LOG", "agent=debug")
    configure()
    logger("crhpc.agent").debug("seen")
    assert capsys.readouterr().err == "crhpc: seen\n"
    configure(environment="")
    assert shown("crhpc.supervisor") == "WARNING"


# -- steps --------------------------------------------------------------------------------------------
def test_steps_add_up(monkeypatch):
    steps, times = Steps(), iter([10.0, 10.5, 20.0, 21.0, 30.0, 30.25])
    monkeypatch.setattr(log.time, "monotonic", lambda: next(times))
    with steps.step("freeze"):
        pass
    with steps.step("write"):
        pass
    with steps.step("freeze"):
        pass
    assert list(steps.seconds.items()) == [("freeze", 0.75), ("write", 1.0)]


def test_a_step_that_fails_is_counted(caplog):
    steps = Steps()
    with pytest.raises(ZeroDivisionError), steps.step("cut", logger("crhpc.engine.dump")):
        raise ZeroDivisionError
    assert steps.seconds["cut"] >= 0.0


def test_a_step_says_how_long_it_took(capsys, monkeypatch):
    times = iter([1.0, 1.0625])
    configure(environment="debug")
    monkeypatch.setattr(log.time, "monotonic", lambda: next(times))
    with Steps().step("cut", logger("crhpc.engine.dump")):
        pass
    assert capsys.readouterr().err == "crhpc: cut: 62.5 ms\n"


def test_bytes_of_steps():
    steps = Steps()
    for size in (10, 20):
        steps.count("content", size)
    steps.count("write", 5)
    assert steps.bytes == {"content": 30, "write": 5}
    assert Steps().bytes == {}
