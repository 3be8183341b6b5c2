"""A pod seen from outside, as plain data: taken before a checkpoint and after a restart, the two must be equal.

Everything that /proc and sock_diag show of the pod's processes goes in, in the pod's own numbers, but for what
must differ: inode and mount numbers, times of start, processor times, sizes in memory. ``differences`` gives a line
for each that differs. What may differ is a rule here, and is said in docs/kinds.md.
"""
from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cmp_to_key
from typing import Any

from crhpc.kernel import libc, pidfd, proc, sockdiag

Seen = dict[str, Any]

_STATUS = ("Umask", "Uid", "Gid", "Groups", "Threads", "SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt", "CapInh",
           "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "THP_enabled", "CoreDumping")
"""Not Seccomp: a job whose ports have moved gets a filter of crhpc's; what has one of its own is refused."""
_OF_THREAD = ("SigPnd", "SigBlk", "CapEff", "CapPrm", "Uid", "Gid", "NoNewPrivs", "Cpus_allowed_list",
              "Mems_allowed_list")
_STAT = ("start_code", "end_code", "start_stack", "start_data", "end_data", "start_brk", "arg_start", "arg_end",
         "env_start", "env_end")
_CHANGING = {"sd", "ac"}
"""VmFlags that tell of pages, not of the mapping: softly dirty; accounted, which depends on what was written first."""
_FDINFO = {"pos", "flags", "eventfd-count", "eventfd-semaphore", "sigmask", "clockid", "settime flags", "it_interval",
           "Pid", "NSpid", "tty-index", "fanotify"}
_NAMELESS = re.compile(r"(?!/memfd:|/dev/zero).* \(deleted\)")


def observe(init: int) -> Seen:
    """All processes of a pod, by their numbers there.

    Args:
        init: the pod's first process, by this node's number.
    """
    names = _Names(init)
    hosts = {proc.status(host).inner("NSpid"): host for host in proc.descendants(init)}
    return {f"{pid}": _task(host, names) for pid, host in sorted(hosts.items())} | {"sockets": names.sockets()}


def differences(before: Seen, after: Seen, where: str = "") -> list[str]:
    """What is not equal, a line each."""
    found = []
    for key in dict.fromkeys([*before, *after]):
        here = f"{where}/{key}"
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(dict(old), dict(new), here)
        elif old != new:
            found.append(f"{here}: {old!r} -> {new!r}")
    return found


class _Names:
    """Inodes and groups by names that stay: the first descriptor that leads there."""

    def __init__(self, init: int) -> None:
        self.init = init
        self.known: dict[str, str] = {}
        self.groups: dict[int, int] = {}
        self.unix = sockdiag.unix_sockets()
        rows = [row for protocol in (6, 17) for row in sockdiag.inet_sockets(protocol)]
        self.inet = {row.inode: row for row in rows if row.inode}
        self.ends = {(row.local, row.remote): row for row in rows}

    def of(self, link: str, first: str, path: str) -> str:
        """Such as ``pipe:3/5``: what was first seen as descriptor 5 of process 3.

        Args:
            path: leads to the very file.
        """
        kind, _, rest = link.partition(":[")
        if not rest or kind not in ("pipe", "socket"):
            return _named_otherwise(link, path) if _NAMELESS.fullmatch(link) else link
        return self.known.setdefault(link, f"{kind}:{first}")

    def group(self, host: int) -> int | str:
        """The pod's number of a terminal's foreground group."""
        if not self.groups:
            for pid in proc.descendants(self.init):
                with suppress(OSError):
                    self.groups[proc.stat(pid).pgrp] = proc.status(pid).inner("NSpgid")
        return self.groups.get(host, "no terminal" if host == -1 else "gone")

    def sockets(self) -> Seen:
        """What sock_diag tells of the pod's sockets."""
        seen: Seen = {}
        for link, name in self.known.items():
            inode = int(link.partition("[")[2].rstrip("]") or 0)
            if inode in self.unix:
                row = self.unix[inode]
                peer = self.known.get(f"socket:[{row.peer}]", "closed" if not row.peer else "unknown")
                seen[name] = {"type": row.kind, "state": row.state, "name": row.name, "peer": peer,
                              "shutdown": row.shutdown, "waiting": len(row.waiting)}
                seen[name] |= {"backlog": row.backlog} if row.state == sockdiag.TCP_LISTEN else {"unread": row.queued}
            elif inode in self.inet:
                seen[name] = self._inet(self.inet[inode])
        return seen

    def _inet(self, row: sockdiag.InetSocket) -> Seen:
        """Of a connection, what is unread or under way in both directions together: where it is changes with windows,
        which grow. Whether the other end has said that it knows of a direction's end (FIN_WAIT1, FIN_WAIT2) does too.
        """
        state = sockdiag.TCP_FIN_WAIT2 if row.state == sockdiag.TCP_FIN_WAIT1 else row.state
        seen = {"family": row.family, "state": state, "local": row.local, "remote": row.remote,
                "shutdown": row.shutdown, "device": row.interface}
        if row.state == sockdiag.TCP_LISTEN:
            return seen | {"waiting": row.rqueue, "backlog": row.wqueue}
        other = self.ends.get((row.remote, row.local))
        ended = sockdiag.TCP_CLOSE_WAIT
        if other is None or (not other.inode and other.state not in (sockdiag.TCP_ESTABLISHED, ended)):
            left = other.wqueue if other is not None and row.state != ended else 0   # of an end that is closed
            return seen | {"unread": row.rqueue + left}
        ends = [row, other] if other is not row else [row]
        sent = any(end.wqueue for end in ends)
        under_way = sum(end.acknowledged + end.wqueue - end.received for end in ends) - 1 if sent else 0
        return seen | {"unread": sum(end.rqueue for end in ends) + under_way}


def _task(host: int, names: _Names) -> Seen:
    stat, status = proc.stat(host), proc.status(host)
    pid = status.inner("NSpid")
    seen: Seen = {"state": "zombie" if stat.state == "Z" else "stopped" if stat.state == "T" else "runs",
                  "parent": _number(stat.ppid), "group": status.inner("NSpgid"), "session": status.inner("NSsid"),
                  "terminal": stat.tty, "foreground": names.group(stat.foreground), "comm": stat.comm}
    if stat.state == "Z":
        return seen | {"exit": stat.exit_code}
    seen |= {name: status.fields.get(name) for name in _STATUS}
    seen |= {name: getattr(stat, name) for name in _STAT}
    for link in ("exe", "cwd", "root"):
        seen[link] = os.readlink(f"/proc/{host}/{link}")
    if seen["exe"].endswith(" (deleted)"):   # a file without a name is made again somewhere
        seen["exe"] = os.path.basename(seen["exe"])
    if seen["cwd"].endswith(" (deleted)") and not os.path.exists(f"/proc/{host}/root{seen['cwd']}"):
        seen["cwd"] = "a removed directory"   # its name may be taken by now
    for file in ("cmdline", "environ", "auxv", "personality", "limits", "oom_score_adj", "coredump_filter", "timers"):
        seen[file] = _read(f"/proc/{host}/{file}")
    seen["timers"] = re.sub(rb"notify: (\S+)/(pid|tid)\.(\d+)",
                            lambda m: b"%s/%s.%d" % (m[1], m[2], _number(int(m[3]))), seen["timers"])
    seen["threads"] = {f"{_inner(host, tid)}": _thread(host, tid) for tid in proc.threads(host)}
    for task in (seen, *seen["threads"].values()):
        for name in ("SigPnd", "ShdPnd"):
            task[name] = _but_timers(task.get(name), seen["timers"])
    seen["fds"] = _descriptors(host, pid, names)
    seen["mappings"] = _mappings(proc.smaps(host))
    return seen


def _but_timers(pending: str | None, timers: bytes) -> int:
    """Signals that wait, but for those of timers: their clock goes on while a restart makes ready."""
    fire = {14, 26, 27, *map(int, re.findall(rb"signal: (\d+)/", timers))}   # those of setitimer(2)
    return int(pending or "0", 16) & ~sum(1 << (number - 1) for number in fire)


def _read(path: str) -> bytes:
    with suppress(OSError):
        return proc.read(path)
    return b""


def _number(host: int) -> int:
    """The pod's number of a process or thread."""
    with suppress(OSError):
        return proc.status(host).inner("NSpid")
    return 0


def _inner(host: int, tid: int) -> int:
    return proc.status(host, tid).inner("NSpid")


def _thread(host: int, tid: int) -> Seen:
    status = proc.status(host, tid)
    policy = os.sched_getscheduler(tid)
    return {name: status.fields.get(name) for name in _OF_THREAD} | {
        "comm": proc.comm(host, tid), "policy": policy, "priority": os.sched_getparam(tid).sched_priority,
        "nice": proc.stat(host, tid).nice, "affinity": sorted(os.sched_getaffinity(tid)),
        "slack": _read(f"/proc/{tid}/timerslack_ns"), "io priority": libc.syscall("ioprio_get", 1, tid)}


def _mappings(mappings: list[proc.Mapping]) -> Seen:
    """Neighbours that are alike count as one: whether the kernel joins them depends on what was written first."""
    joined: list[tuple[int, int, int, str]] = []   # start, end, offset behind the end, what it is
    for m in mappings:
        what = f"{m.protection} {'s' if m.shared else 'p'} {_backing(m)} {' '.join(sorted(m.flags - _CHANGING))}"
        last = joined[-1] if joined else None
        if last and last[1] == m.start and last[3] == what and (not m.inode or last[2] == m.offset or m.deleted):
            joined[-1] = last[0], m.end, m.offset + m.size, what
        else:
            joined.append((m.start, m.end, m.offset + m.size, what))
    return {f"{start:x}-{end:x}": (what, behind if "/" in what else 0) for start, end, behind, what in joined}


def _backing(mapping: proc.Mapping) -> str:
    """Private mappings of files whose names are gone come back as anonymous memory."""
    if mapping.deleted:
        return "shared, without a name" if mapping.shared else ""
    return mapping.name


# -- descriptors ------------------------------------------------------------------------------------------
def _descriptors(host: int, pid: int, names: _Names) -> Seen:
    numbers = proc.fds(host)
    firsts = _firsts(host, numbers)
    seen: Seen = {}
    for fd in numbers:
        path = f"/proc/{host}/fd/{fd}"
        link = os.readlink(path)
        info = proc.fdinfo(host, fd)
        position = 0 if link.startswith(("/dev/pts", "socket")) else info.position
        seen[f"{fd}"] = {"link": names.of(link, f"{pid}/{fd}", path), "position": position, "flags": _flags(info),
                         "more": sorted(_more(info)), "same as": firsts[fd]}
    return seen


def _flags(info: proc.FdInfo) -> str:
    """That a file never had a name (O_TMPFILE) is not told again."""
    return oct(info.flags & ~os.O_TMPFILE if info.flags & os.O_TMPFILE == os.O_TMPFILE else info.flags)


def _named_otherwise(link: str, path: str) -> str:
    """The other name of a file whose first is gone, if it has one where it was."""
    root, stat = os.path.dirname(os.path.dirname(path)) + "/root", os.stat(path)
    folder = os.path.dirname(link)
    if stat.st_nlink:
        with suppress(OSError), os.scandir(root + folder) as listing:
            for entry in listing:
                if entry.inode() == stat.st_ino:
                    return f"{folder}/{entry.name}"
    return "a file without a name"


def _more(info: proc.FdInfo) -> Iterator[str]:
    for name, value in info.extra:
        if name == "tfd":   # the inode and device of the target differ; a fired EPOLLONESHOT may wait for errors
            number, events, data = re.sub("events:|data:", " ", value.partition(" pos:")[0]).split()
            fired = int(events, 16) & 0x40000000 and not int(events, 16) & 0x0FFFFFE7
            yield f"tfd {number} events {'fired' if fired else events} data {data}"
        elif name == "inotify":
            yield "inotify " + " ".join(word for word in value.split() if word.startswith(("wd:", "mask:")))
        elif name == "lock":   # told in any order; the process that has taken a flock may be gone
            _index, kind, advisory, access, host, _inode, start, end = value.split()
            owner = _number(int(host)) if kind == "POSIX" else ""
            yield f"lock {kind} {advisory} {access} {owner} {start} {end}"
        elif name == "NSpid":
            yield f"NSpid {value.split()[-1]}"
        elif name in _FDINFO and name not in ("Pid",):
            yield f"{name} {value}"


def _firsts(host: int, numbers: list[int]) -> dict[int, int]:
    """For each descriptor of a process the lowest that refers to the same open file."""
    def compare(a: int, b: int) -> int:
        return {0: a - b, 1: -1, 2: 1}[pidfd.kcmp(host, host, pidfd.KCMP_FILE, a, b)]

    firsts: dict[int, int] = {}
    last = -1
    for fd in sorted(numbers, key=cmp_to_key(compare)):
        same = last >= 0 and pidfd.kcmp(host, host, pidfd.KCMP_FILE, last, fd) == 0
        last = firsts[fd] = firsts[last] if same else fd
    return firsts


def pages(host: int, mapping: proc.Mapping) -> int:
    """How many pages a mapping has in memory, by the page map."""
    with open(f"/proc/{host}/pagemap", "rb", buffering=0) as file:
        raw = os.pread(file.fileno(), mapping.size // libc.PAGE * 8, mapping.start // libc.PAGE * 8)
    return sum(1 for (word,) in struct.iter_unpack("Q", raw) if word >> 63)
