"""Everything that can go wrong and that a user can meet: one class each.

The docstring is the message, filled in with the keyword arguments that the class is raised with; the
class carries the exit code. A message names the thing and ends with the cure. Below the engine plain
``OSError`` is raised, naming the system call; whoever knows what it means to the user turns it into one
of these.

Exit codes (docs/cli.md): the job's own code is passed through; 85, 75 and 78 are habits of batch
systems (HTCondor's self-checkpointing, EX_TEMPFAIL, EX_CONFIG); the others follow sysexits(3head).
"""
from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import ClassVar

EXIT_CHECKPOINTED = 85
"""The job was checkpointed and ended on request: start it again to go on."""
EXIT_NO_IMAGE = 75
EXIT_REFUSED = 78
EXIT_USAGE = 64
EXIT_LOST = 69
EXIT_INTERNAL = 70
EXIT_CANT_WRITE = 73
EXIT_TEMPORARY = 74


PASSING = "try again a moment later"
"""The cure of what will be over soon; such a checkpoint is tried again by itself."""
ENDING = "the job's command has just ended"
"""Why there is nothing worth a checkpoint any more: told only to who has asked for one."""


class CrhpcError(Exception):
    """{what}"""

    code: ClassVar[int] = EXIT_INTERNAL

    def __init__(self, **fields: object) -> None:
        self.fields = fields
        super().__init__(" ".join((type(self).__doc__ or "").split()).format(**fields))

    @property
    def passing(self) -> bool:
        """Whether the cause will be over soon by itself."""
        return self.fields.get("cure") == PASSING


class Reported(CrhpcError):
    """{what}"""

    def __init__(self, code: int, what: str) -> None:
        """An error that was worded elsewhere, by an agent of another node."""
        super().__init__(what=what)
        self.code = code   # type: ignore[misc]

    @property
    def passing(self) -> bool:
        return str(self).endswith(PASSING)


class Usage(CrhpcError):
    """{what}"""

    code = EXIT_USAGE


# -- before anything is started ---------------------------------------------------------------------
class NotAllowed(CrhpcError):
    """this system does not allow {what}: {why}. Cure: {cure} (`crhpc doctor` shows the rest)"""

    code = EXIT_REFUSED


class CommandNotFound(CrhpcError):
    """cannot start {command}: {why}"""

    code = 127


class DirectoryBusy(CrhpcError):
    """{directory} belongs to a running job (process {pid} on {host}). Cure: another --dir, or
    `crhpc status {directory}`"""

    code = EXIT_REFUSED


class OtherJob(CrhpcError):
    """{directory} holds an unfinished job of another command ({command}). Cure: finish it with
    `crhpc restart {directory}`, or take another --dir, or start afresh with --resume never"""

    code = EXIT_REFUSED


class OpenToAll(CrhpcError):
    """every user of this machine can write to {directory}, and could put a checkpoint there that would then
    run as you. Cure: a --dir that only you can write to"""

    code = EXIT_REFUSED


class Unwritable(CrhpcError):
    """cannot write to {path}: {why}. Cure: {cure}"""

    code = EXIT_CANT_WRITE


# -- images -----------------------------------------------------------------------------------------
class NoImage(CrhpcError):
    """no usable checkpoint in {path}: {why}"""

    code = EXIT_NO_IMAGE


class ImageDamaged(CrhpcError):
    """{image} is damaged: {what}. Cure: restart an older image (`crhpc list` shows them)"""

    code = EXIT_NO_IMAGE


class OtherMachine(CrhpcError):
    """{image} cannot be restarted here: {what}. Cure: {cure}"""

    code = EXIT_REFUSED


# -- checkpoints ------------------------------------------------------------------------------------
class Unsupported(CrhpcError):
    """cannot save {what} of pid {pid} ({program}). Cure: {cure}"""

    code = EXIT_REFUSED


class CheckpointFailed(CrhpcError):
    """no checkpoint was taken: {why}; the job goes on. Cure: {cure}"""

    code = EXIT_TEMPORARY


class DiskFull(CrhpcError):
    """no checkpoint was taken: {path} is full ({why}); the job goes on. Cure: free space there, or
    --keep fewer images"""

    code = EXIT_CANT_WRITE


def failed_checkpoint(error: OSError, temporary: str | Path) -> CrhpcError:
    """What an error of the system was to a checkpoint that wrote to the directory ``temporary``.

    That one is gone by then and has another name each time: the job directory stands for it.
    """
    directory = os.path.dirname(temporary)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(path=directory, why=error.strerror)
    if error.errno == errno.ESRCH:
        return CheckpointFailed(why="a process of the job ended in the middle", cure=PASSING)
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | Path) else ""
    if not name or name.startswith(str(temporary)):
        return CheckpointFailed(why=f"{directory}: {error.strerror}", cure="make the directory writable again")
    return CheckpointFailed(why=f"{name}: {error.strerror}", cure="run with CRHPC_LOG=debug for the details")


class NoJob(CrhpcError):
    """no job is running in {directory}. Cure: name the directory that `crhpc run --dir` was given"""

    code = EXIT_LOST


class Unreachable(CrhpcError):
    """the job in {directory} (process {pid} on {host}) can't be reached from here: {why}. Cure: run this
    command on {host}, as the user who started the job"""

    code = EXIT_LOST


class JobEnded(CrhpcError):
    """the job in {directory} ended before the checkpoint was complete. Cure: `crhpc list {directory}` shows
    what can be restarted"""

    code = EXIT_LOST


# -- restart ----------------------------------------------------------------------------------------
class RestartFailed(CrhpcError):
    """cannot restart {image}: {why}; the image is untouched. Cure: {cure}"""

    code = EXIT_NO_IMAGE


class FileGone(CrhpcError):
    """cannot restart {image}: {path} {why}; pid {pid} ({program}) needs it. Cure: put it back as it was at
    the checkpoint, or tell where it is now: --map OLD=NEW"""

    code = EXIT_NO_IMAGE


class OtherBuild(CrhpcError):
    """cannot restart {image}: {path} {why}; pid {pid} ({program}) has it mapped. Cure: put back what it was at the
    checkpoint, tell where that is now (--map OLD=NEW), or --force it where the difference does not matter"""

    code = EXIT_REFUSED


class FileChanged(CrhpcError):
    """cannot restart {image}: {path} {why}; pid {pid} ({program}) has it open. Cure: {cure}"""

    code = EXIT_NO_IMAGE


class FileLocked(CrhpcError):
    """cannot restart {image}: {path} {why}. Cure: {cure}"""

    code = EXIT_NO_IMAGE


class PortTaken(CrhpcError):
    """cannot restart {image}: {address} is in use by another program. Cure: end that program (`ss -tulpn`
    names it) or restart on another node"""

    code = EXIT_NO_IMAGE


# -- the job's own processes ------------------------------------------------------------------------
class AgentLost(CrhpcError):
    """the agent on {host} ended unexpectedly ({why}) and the job with it. Cure: the same command line
    resumes from the last checkpoint"""

    code = EXIT_LOST


class HostLost(CrhpcError):
    """nothing is heard of the agent on {host}, this host itself. Cure: the same command line resumes from the
    last checkpoint, here or on another host"""

    code = EXIT_LOST


class LaunchFailed(CrhpcError):
    """cannot start the agents with {launcher}: {why}. Cure: {cure}"""

    code = EXIT_LOST
