"""The commands. Each is one function from parsed arguments to an exit code; docs/cli.md is their manual.

Here alone the parts meet: the supervisor, the images and, through messages, the agents. Results go to
standard output, everything else to standard error; ``run`` and ``restart`` leave standard output to the job.
"""
from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import socket
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from crhpc import __version__, doctor, errors, hosts, log, resume, tables
from crhpc.client import ask_checkpoint, ask_status
from crhpc.filepolicy import FilePolicy, Files, check_moved, moved_path
from crhpc.heartbeat import SECONDS
from crhpc.image.format import LEVEL, MANIFEST, read_manifest, remove_stale_temporaries
from crhpc.jobdir import DEFAULT, JobDirectory, JobState, Status, unwritable
from crhpc.launch import ALONE, Launch
from crhpc.progress import Report, checkpoint_line, duration, plain, plural, size
from crhpc.recovery import Fleet, go_on
from crhpc.supervisor import Supervisor
from crhpc.task import Options, Task
from crhpc.verify import verify_apart

EVERY = "10m"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

Command = Callable[[argparse.Namespace], int]


# -- run and restart --------------------------------------------------------------------------------
def run(args: argparse.Namespace) -> int:
    """``crhpc run``: start a command in a pod, or resume it."""
    if not args.command:
        raise errors.Usage(what="no command. Cure: crhpc run [options] -- COMMAND [ARGUMENT...]")
    command = resume.Command(tuple(args.command), _working_directory())
    report = Report(verbose=args.verbose)
    with JobDirectory.take(args.dir) as directory:
        _clear(directory)

        def attempt(fleet: Fleet) -> int:
            state, found = resume.moved(directory.read_state(), resume.look(directory.path), _policy(args))
            images = resume.candidates(args.resume, state, found, command, directory.path)
            args.resume = resume.Mode.AUTO if args.resume is resume.Mode.NEVER else args.resume   # the next time
            if not images:
                return _supervise(directory, _starting(command, found), fleet.afresh(), args, report)
            return _restart_newest(directory, images, found, state, fleet, args, report)
        return go_on(attempt, _fleet(args), args.restarts, report.say)


def restart(args: argparse.Namespace) -> int:
    """``crhpc restart``: restart the newest usable image of a directory, or the one that is named."""
    path: Path = args.path.absolute()
    if not path.is_dir():
        raise errors.NoImage(path=path, why="there is no such directory")
    is_image = (path / MANIFEST).exists()
    report = Report(verbose=args.verbose)
    with JobDirectory.take(path.parent if is_image else path) as directory:
        _clear(directory)
        this = [resume.look_at(path)] if is_image else []

        def attempt(fleet: Fleet) -> int:
            state, found = resume.moved(directory.read_state(), resume.look(directory.path), _policy(args))
            if not this:
                return _restart_newest(directory, resume.to_restart(state, found), found, state, fleet, args, report)
            image = resume.moved(None, [this.pop()], _policy(args))[1][0]   # that one only at first
            return _restart(directory, image, found, state, fleet, args, report)
        return go_on(attempt, _fleet(args), args.restarts, report.say)


def _restart_newest(directory: JobDirectory, images: Sequence[resume.Found], found: Sequence[resume.Found],
                    state: JobState | None, fleet: Fleet, args: argparse.Namespace, report: Report) -> int:
    """Restart the first of the images that is whole."""
    def damaged(why: str) -> None:
        report.hold()
        report.say(why)
    try:
        return resume.newest_usable(
            images, lambda image: _restart(directory, image, found, state, fleet, args, report), damaged,
            directory.path)
    finally:
        report.release()


def _restart(directory: JobDirectory, image: resume.Found, found: Sequence[resume.Found], state: JobState | None,
             fleet: Fleet, args: argparse.Namespace, report: Report) -> int:
    """Verify an image and restart it."""
    report.hold()
    try:
        if image.job is None:
            verify_apart(image.path)   # knows what is wrong with it
        return _supervise(directory, _restarting(image, found, state), fleet.of_size(image.pods), args, report)
    finally:
        report.release()


def _supervise(directory: JobDirectory, task: Task, fleet: Fleet, args: argparse.Namespace, report: Report) -> int:
    options = Options(every=args.every, keep=args.keep, wait_all=args.wait_all, memory=args.memory,
                      level=args.level, policy=_policy(args), dry_run=args.dry_run,
                      launch=Launch(fleet.used, args.launcher, patience=args.heartbeat) if fleet.used else ALONE)
    return Supervisor(directory, task, options, report).run()


def _fleet(args: argparse.Namespace) -> Fleet:
    """Where the agents may run; this host's is the first."""
    listed = hosts.read_file(args.hostfile) if args.hostfile else hosts.parse(args.hosts or "")
    if not listed:
        return Fleet()
    first = hosts.index_of_this(listed)
    if first is None:
        raise errors.Usage(what=f"this host, {socket.gethostname()}, is none of {', '.join(h.name for h in listed)}. "
                                "Cure: start crhpc on one of them")
    names = (listed[first].name, *(host.name for host in listed if host is not listed[first]))
    spares = tuple(host.name for host in hosts.parse(args.spares or ""))
    if twice := {*names} & {*spares}:
        raise errors.Usage(what=f"{', '.join(sorted(twice))} can't be a spare and one of --hosts. Cure: list it once")
    return Fleet(names, spares)


def _policy(args: argparse.Namespace) -> FilePolicy:
    return FilePolicy(args.files, args.map, args.force)


def _clear(directory: JobDirectory) -> None:
    """Take away what killed writers left; nobody else is at work here."""
    try:
        remove_stale_temporaries(directory.path)
    except OSError as error:
        raise unwritable(directory.path, error) from error


def _starting(command: resume.Command, found: Sequence[resume.Found]) -> Task:
    if shutil.which(command.argv[0]) is None:
        raise errors.CommandNotFound(command=command.argv[0], why="there is no such program")
    state = JobState(id=uuid.uuid4().hex, argv=command.argv, cwd=command.cwd, status=Status.RUNNING,
                     started=time.time(), superseded=tuple(image.number for image in found))
    return Task(state=state, image=None, environment=dict(os.environ))


def _restarting(image: resume.Found, found: Sequence[resume.Found], before: JobState | None) -> Task:
    if image.job is None or image.command is None:
        raise errors.ImageDamaged(image=image.path, what="its manifest names no job")
    state = JobState(id=image.job, argv=image.command.argv, cwd=image.command.cwd, status=Status.RUNNING,
                     started=image.started, superseded=resume.superseded(image, found, before))
    return Task(state=state, image=image.path)


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise errors.Usage(what="the working directory is gone. Cure: cd to one that exists") from None


# -- a running job ----------------------------------------------------------------------------------
def checkpoint(args: argparse.Namespace) -> int:
    """``crhpc checkpoint``: have the running job of a directory checkpointed, and wait for it."""
    report = Report(verbose=False)
    try:
        answer = ask_checkpoint(args.dir, stop=args.stop,
                                progress=lambda m: report.progress(m["phase"], m["done"], m["total"]))
    finally:
        report.clear()
    if answer["op"] == "checkpoint-failed":
        report.say(answer["error"])
        return int(answer["code"]) or errors.EXIT_TEMPORARY
    print(plain(f"{checkpoint_line(answer)}: {answer['image']}"))
    return 0


def status(args: argparse.Namespace) -> int:
    """``crhpc status``: the running job of a directory."""
    answer = ask_status(args.dir)
    del answer["op"]
    if args.json:
        _print_json(answer)
    else:
        _print_lines(tables.status(answer, time.time()))
    return 0


# -- images -----------------------------------------------------------------------------------------
def list_images(args: argparse.Namespace) -> int:
    """``crhpc list``: the images of a directory."""
    entries = [_entry(image) for image in resume.look(args.dir)]
    if args.json:
        _print_json(entries)
    elif entries:
        _print_lines(tables.images(entries))
    else:
        Report(verbose=False).say(f"no checkpoints in {args.dir}")
    return 0


def _entry(image: resume.Found) -> dict[str, Any]:
    entry: dict[str, Any] = {"number": image.number, "path": str(image.path), "taken": image.taken,
                             "size": None, "tasks": None, "job": image.job, "state": "ok"}
    try:
        manifest = read_manifest(image.path)
    except errors.ImageDamaged:
        return entry | {"state": "damaged"}
    except errors.NoImage:
        return entry | {"state": "unreadable"}
    for name, length in [("master.h5", manifest.master.size), *((s.file, s.size) for s in manifest.shards)]:
        file = image.path / name
        if not file.is_file() or file.stat().st_size != length:
            entry["state"] = "damaged"
    return entry | {"size": manifest.master.size + sum(shard.size for shard in manifest.shards),
                    "tasks": manifest.job.get("tasks")}


def verify_image(args: argparse.Namespace) -> int:
    """``crhpc verify``: every hash, chunk and reference of an image."""
    from crhpc.image.apart import verify

    try:
        found = verify(args.image, full=True)
    except OSError as error:
        raise errors.NoImage(path=args.image, why=error.strerror or error) from error
    print(plain(f"{args.image}: ok, {plural(found.nodes, 'node')}, {plural(found.tables, 'table')}, "
                f"{plural(found.pages, 'page')}, {size(found.size)} in {duration(found.seconds)}"))
    return 0


def pack_image(args: argparse.Namespace) -> int:
    """``crhpc pack``: an image as one file."""
    from crhpc.image.pack import pack

    try:
        length = pack(args.image, args.output.absolute())
    except OSError as error:
        raise errors.Unwritable(path=args.output, why=error.strerror or error,
                                cure="name a file that does not exist, where there is room") from error
    print(plain(f"{args.output}: {size(length)}"))
    return 0


def show(args: argparse.Namespace) -> int:
    """``crhpc show``: the tree of an image, or one object of it."""
    from crhpc.image.reader import Image

    with Image(args.image) as image:
        _print_lines(tables.tree(image.entries(args.object), image.describe(args.object)))
    return 0


def examine(args: argparse.Namespace) -> int:
    """``crhpc doctor``: what this machine allows."""
    rows = doctor.examine(args.dir, os.environ)
    if args.json:
        _print_json([{"name": row.name, "ok": row.ok, "needed": row.needed, "detail": row.detail,
                      "cure": row.cure} for row in rows])
    else:
        _print_lines(tables.capabilities(rows))
    return 0 if doctor.all_needed(rows) else errors.EXIT_REFUSED


def _print_lines(lines: Sequence[str]) -> None:
    print("\n".join(lines))


def _print_json(content: object) -> None:
    print(json.dumps(content, indent=1))


# -- the command line -------------------------------------------------------------------------------
_EXIT_CODES = ("The exit code is the job's own; 85: checkpointed and stopped, start it again to go on; 75: no usable "
               "checkpoint; 78: refused in advance. docs/cli.md has all of them.")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise errors.Usage(what=f"{message}. Cure: {self.prog} --help")


def seconds(text: str) -> float | None:
    """``30``, ``30s``, ``5m``, ``1.5h``; 0 is None: never."""
    value = _number(text, _SECONDS)
    return value or None


def count_of_bytes(text: str) -> int:
    """``1000000``, ``256M``, ``1.5G``."""
    return round(_number(text.upper().removesuffix("B").removesuffix("I"), _BYTES))


def _number(text: str, units: dict[str, int]) -> float:
    factor = units.get(text[-1:], 0)
    value = float(text[:-1] if factor else text) * (factor or 1)
    if not math.isfinite(value) or value < 0:
        raise ValueError(text)
    return value


def parser() -> argparse.ArgumentParser:
    """The grammar of the command line."""
    root = _Parser(prog="crhpc", allow_abbrev=False, description="checkpoint and restart of unmodified MPI jobs",
                   epilog=_EXIT_CODES)
    root.add_argument("--version", action="version", version=f"crhpc {__version__}")
    commands = root.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, function: Command, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(function=function, verbose=False, dry_run=False)
        return sub

    sub = command("run", run, "run a command so that it survives, or resume it")
    sub.usage = "crhpc run [OPTION ...] -- COMMAND [ARGUMENT ...]"
    sub.epilog = _EXIT_CODES
    sub.add_argument("--dir", type=Path, default=_directory(), metavar="DIR",
                     help="where the checkpoints are (%(default)s)")
    sub.add_argument("--resume", type=resume.Mode, choices=list(resume.Mode), default=resume.Mode.AUTO,
                     help="resume an unfinished job if there is one (auto), never, or fail without (require)")
    _add_job_options(sub)
    sub.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND [ARGUMENT ...]",
                     help="the job; what follows -- is left as it is")

    sub = command("restart", restart, "restart the newest usable checkpoint of a directory, or a given one")
    sub.epilog = _EXIT_CODES
    sub.add_argument("path", type=Path, metavar="DIR|IMAGE",
                     help="a directory of checkpoints, or one of them (checkpoints/ckpt-000005)")
    sub.add_argument("--dry-run", action="store_true", help="only tell what would be done to files, or why it can't be")
    _add_job_options(sub)

    sub = command("checkpoint", checkpoint, "have the running job of a directory checkpointed")
    _add_directory(sub)
    sub.add_argument("--stop", action="store_true", help="end the job after it")

    for name, function, text in (("status", status, "the running job of a directory"),
                                 ("list", list_images, "the checkpoints of a directory")):
        sub = command(name, function, text)
        _add_directory(sub)
        sub.add_argument("--json", action="store_true", help="for programs")

    _add_looking(command)
    return root


def _add_looking(command: Callable[[str, Command, str], argparse.ArgumentParser]) -> None:
    """What only looks: at images, and at this machine."""
    sub = command("verify", verify_image, "check every byte of a checkpoint")
    sub.add_argument("image", type=Path, metavar="IMAGE", help="such as checkpoints/ckpt-000005")
    sub = command("show", show, "look into a checkpoint")
    sub.add_argument("image", type=Path, metavar="IMAGE", help="such as checkpoints/ckpt-000005")
    sub.add_argument("object", nargs="?", default="/", metavar="PATH", help="a group or a table in it (%(default)s)")
    sub = command("pack", pack_image, "make one HDF5 file of a checkpoint, to keep or to look into")
    sub.add_argument("image", type=Path, metavar="IMAGE", help="such as checkpoints/ckpt-000005")
    sub.add_argument("output", type=Path, metavar="OUT.h5", help="the file to write; it must not exist")
    sub = command("doctor", examine, "what this machine allows, and the cure for each no")
    sub.add_argument("--dir", type=Path, default=_directory(), metavar="DIR",
                     help="where checkpoints will be: is there room? (%(default)s)")
    sub.add_argument("--json", action="store_true", help="for programs")


def _add_job_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--every", type=seconds, default=os.environ.get("CRHPC_EVERY", EVERY), metavar="SECONDS",
                     help="a checkpoint each so many seconds (30, 5m, 1h; 0: on request only; %(default)s)")
    sub.add_argument("--keep", type=int, default=os.environ.get("CRHPC_KEEP", "2"), metavar="K",
                     help="how many checkpoints to keep (0: all; %(default)s)")
    sub.add_argument("--files", type=Files, choices=list(Files), default=Files.ROLLBACK,
                     help="at a restart, files that have changed since the checkpoint are brought back (rollback), "
                          "left as they are (keep), or a reason to refuse (strict)")
    sub.add_argument("--map", type=moved_path, action="append", default=[], metavar="OLD=NEW",
                     help="at a restart, look for the files that were below OLD below NEW")
    sub.add_argument("--force", action="store_true",
                     help="restart on a machine, or with program files, that may break the job")
    sub.add_argument("--wait-all", action="store_true",
                     help="the job is over when its last process ends, not when COMMAND does")
    sub.add_argument("-v", "--verbose", action="store_true", help="a line for each checkpoint")
    sub.add_argument("--hosts", metavar="LIST", help="run on these hosts (node1,node[3-5]:2), this one among them")
    sub.add_argument("--hostfile", type=Path, metavar="FILE", help="run on the hosts in a file, one a line")
    sub.add_argument("--spares", metavar="LIST", help="hosts that take the places of lost ones")
    sub.add_argument("--restarts", type=int, default=0, metavar="N",
                     help="go on by itself when hosts or agents are lost, at most so many times (%(default)s)")
    sub.add_argument("--launcher", default="mpiexec", metavar="HOW",
                     help="how agents are started elsewhere: mpiexec, srun, ssh, or a program like ssh (%(default)s)")
    sub.add_argument("--heartbeat", type=seconds, default=SECONDS, metavar="SECONDS",
                     help="a host that is silent for so long is lost (%(default)s)")
    sub.add_argument("--memory", type=count_of_bytes, default="256M", metavar="SIZE",
                     help="what an agent may use beside the job (%(default)s)")
    sub.add_argument("--level", type=int, default=LEVEL, metavar="N", help="of zstd's compression (%(default)s)")


def _add_directory(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("dir", nargs="?", type=Path, default=_directory(), metavar="DIR",
                     help="its directory (%(default)s)")


def _directory() -> Path:
    return Path(os.environ.get("CRHPC_DIR") or DEFAULT)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line as data.

    Raises:
        errors.Usage: it makes no sense.
    """
    # argparse's own treatment of "--" differs between versions of Python, so the command is cut off first.
    words, end = list(argv), list[str]()
    if words[:1] == ["run"] and "--" in words:
        at = words.index("--")
        words, end = words[:at], words[at:]
    args = parser().parse_args(words)
    if end:
        args.command = [*args.command, *end] if args.command else end[1:]
    if getattr(args, "restarts", 0) < 0:
        raise errors.Usage(what="--restarts is less than 0. Cure: 0 leaves it to you")
    if getattr(args, "keep", 0) < 0:
        raise errors.Usage(what="--keep is less than 0. Cure: 0 keeps all checkpoints")
    try:
        args.map = check_moved(getattr(args, "map", ()))
    except ValueError as error:
        raise errors.Usage(what=f"--map leads {error} to two places. Cure: give it once") from None
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """The ``crhpc`` command. Returns: the exit code."""
    verbose = False
    try:
        _open_standard_streams()
        args = parse(sys.argv[1:] if argv is None else argv)
        verbose = args.verbose
        log.configure(verbose=False)
        code = int(args.function(args))
        if sys.stdout is not None:
            sys.stdout.flush()   # while an error can still be answered
        return code
    except errors.CrhpcError as error:
        Report(verbose=verbose).say(str(error))
        return error.code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `crhpc list | head`: whoever reads has seen enough. Python must not try to flush once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Exception as error:
        Report(verbose=verbose).say(
            f"internal error: {type(error).__name__}: {error} (CRHPC_LOG=debug shows where)")
        if verbose or "debug" in os.environ.get("CRHPC_LOG", ""):
            traceback.print_exc()
        return errors.EXIT_INTERNAL


def _open_standard_streams() -> None:
    """A closed standard stream becomes /dev/null, lest another file take its number."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
