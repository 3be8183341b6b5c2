"""Images of strangers: values of any table changed behind the checksums, as one who makes an image can.

What a restart reads goes through ``Shard.table``; there rows are changed, so that no file has to be written anew.
"""
from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from crhpc.image.reader import Shard
from crhpc.image.records import columns

HOLDS_MUCH = """
import array, ctypes.util, mmap, pty, select, socket, tempfile, threading
os.makedirs("sub", exist_ok=True)
regular = open("sub/file", "w+b"); regular.write(b"held" * 5000); regular.flush()
reading = open("sub/file", "rb"); reading.seek(5)
appending = open("sub/log", "ab"); appending.write(b"line\\n"); appending.flush()
unlinked = open("sub/gone", "w+b"); unlinked.write(b"gone" * 2000); unlinked.flush(); os.unlink("sub/gone")
private = open(os.environ["TMPDIR"] + "/private", "w+b"); private.write(b"p" * 5000); private.flush()
os.symlink("private", os.environ["TMPDIR"] + "/link")
place = os.open("sub", os.O_RDONLY)
only = os.open("sub", os.O_PATH)
fcntl.lockf(regular, fcntl.LOCK_EX, 10, 5); fcntl.flock(appending, fcntl.LOCK_SH)
source, sink = os.pipe(); os.write(sink, b"in flight")
os.mkfifo("fifo"); fifo = os.open("fifo", os.O_RDWR); os.write(fifo, b"first in")
one, two = socket.socketpair(); one.send(b"to two")
socket.send_fds(one, [b"with files"], [source, regular.fileno()])
named = socket.socket(socket.AF_UNIX); named.bind("sub/socket"); named.listen()
calling = socket.socket(socket.AF_UNIX); calling.connect("sub/socket")
letters = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); letters.bind("\\0" + os.urandom(8).hex())
letters.sendto(b"letter", letters.getsockname())
server = socket.create_server(("127.0.0.1", 0)); client = socket.create_connection(server.getsockname())
served, _ = server.accept(); served.sendall(b"queued")
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.bind(("127.0.0.1", 0))
udp.sendto(b"datagram", udp.getsockname())
poll = select.epoll(); poll.register(source, select.EPOLLIN); poll.register(served, select.EPOLLIN)
libc = ctypes.CDLL(None, use_errno=True)
event = libc.eventfd(5, 0)
timer = libc.timerfd_create(1, 0); libc.timerfd_settime(timer, 0, struct.pack("4q", 100, 0, 1000, 0), None)
watch = libc.inotify_init1(0); libc.inotify_add_watch(watch, b"sub", 0x302)
signals = libc.signalfd(-1, struct.pack("Q", 1 << 9), 0)
master, slave = pty.openpty(); os.write(master, b"typed")
memory = mmap.mmap(-1, 1 << 16); memory[:4] = b"anon"
shared = mmap.mmap(regular.fileno(), 4096)
copied = mmap.mmap(regular.fileno(), 8192, flags=mmap.MAP_PRIVATE); copied[:4] = b"copy"
segment = libc.shmget(0, 8192, 0o1600)
libc.shmat.restype = ctypes.c_void_p
attached = libc.shmat(segment, None, 0)
sealed = os.memfd_create("memory"); os.write(sealed, b"memfd" * 2000)
signal.setitimer(signal.ITIMER_REAL, 1000, 5)
signal.signal(signal.SIGUSR1, lambda *_: None); signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
os.kill(os.getpid(), signal.SIGUSR2)
waits = threading.Thread(target=time.sleep, args=(10000,), daemon=True); waits.start()
child = os.fork()
if child == 0:
    os.setsid()
    if os.fork() == 0:
        os.setpgid(0, 0)
    while True:
        signal.pause()
zombie = os.fork()
if zombie == 0:
    os._exit(3)
os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
pidfd = os.pidfd_open(child)
"""
"""For ``holding``: a bit of most kinds."""

_WORDS = [0, 1, 2, 3, 4, 7, 8, 63, 255, 4095, 4096, 4097, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32,
          1 << 40, (1 << 47) - 4096, 1 << 62, (1 << 63) - 1]
_SIGNED = [*_WORDS, -1, -2, -4096, -(1 << 31), -(1 << 63)]
_UNSIGNED = [*_WORDS, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1]
_TEXTS = ["", "x", "/", "..", ".", "relative", "../../up", "/dev/zero", "/dev/tty", "/proc/self/mem", "/dev/null",
          "a\nb", "\udcff", "x" * 300, "/" + "x" * 5000, "/" + "y/" * 3000, "%s{0}", "é", "[vdso]", "[heap]",
          "/nowhere/at/all", "pipe", "regular", "-1", "1", "(deleted)"]
_SIZES = [0, 1, 3, 7, 8, 23, 24, 127, 128, 216, 4096, 1 << 20]

Change = Callable[[type, list[Any]], list[Any]]


@contextmanager
def changed(change: Change) -> Iterator[None]:
    """Within it every table that a restart reads is changed first."""
    plain = Shard.table

    def table(self: Shard, record: type, name: str) -> list[Any]:
        return change(record, plain(self, record, name))
    Shard.table = table   # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Shard.table = plain   # type: ignore[method-assign]


def at_random(rng: random.Random, tables: dict[type, list[Any]], texts: list[str]) -> tuple[str, Change]:
    """One change somewhere, and what it is."""
    record = rng.choice(sorted((each for each, rows in tables.items() if rows), key=lambda each: each.__name__))
    rows = tables[record]
    number, way = rng.randrange(len(rows)), rng.random()
    if way < 0.04:
        new, what = rows[:number] + rows[number + 1:], f"row {number} left out"
    elif way < 0.08:
        new, what = [*rows, rows[number]], f"row {number} twice"
    elif way < 0.1:
        new, what = [], "no rows"
    else:
        column = rng.choice(columns(record))
        old = getattr(rows[number], column.name)
        others = [getattr(row, column.name) for row in rows]
        value = _other(rng, column.kind, old, others, texts)
        new = [*rows[:number], dataclasses.replace(rows[number], **{column.name: value}), *rows[number + 1:]]
        what = f"row {number}, {column.name}: {old!r:.80} -> {value!r:.80}"
    return f"{record.__name__}: {what}", lambda here, found: new if here is record else found


def _other(rng: random.Random, kind: str, old: Any, others: list[Any], texts: list[str]) -> Any:
    if rng.random() < 0.15:
        return rng.choice(others)
    ways: dict[str, Callable[[], Any]] = {
        "bool": lambda: not old,
        "float": lambda: rng.choice([0.0, -1.0, 1e300, float("nan"), float("inf")]),
        "int": lambda: rng.choice([*_SIGNED, *(old + step for step in (-1, 1, 2, -16) if abs(old) < 1 << 62)]),
        "u64": lambda: rng.choice([*_UNSIGNED, *(old + step for step in (-4096, -1, 1, 4096) if 4096 < old < 1 << 63)]),
        "str": lambda: rng.choice([*_TEXTS, *texts, old[:-1], old + "x", old + "/..", old + "/x"]),
        "bytes": lambda: _bytes(rng, old),
        "ints": lambda: _several(rng, old, rng.choice(_SIGNED)),
        "strings": lambda: _several(rng, old, rng.choice(_TEXTS)),
    }
    return ways[kind]()


def _bytes(rng: random.Random, old: bytes) -> bytes:
    way = rng.randrange(4)
    if way == 0 and old:
        flipped = bytearray(old)
        for _ in range(rng.randrange(1, 5)):
            flipped[rng.randrange(len(old))] = rng.randrange(256)
        return bytes(flipped)
    if way == 1:
        return old[:rng.randrange(len(old) + 1)]
    return rng.randbytes(rng.choice(_SIZES)) if way == 2 else old + bytes(rng.choice([1, 8, 100]))


def _several(rng: random.Random, old: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    way = rng.randrange(4)
    if way == 0 and old:
        number = rng.randrange(len(old))
        return (*old[:number], value, *old[number + 1:])
    return ((*old, value), old[:-1], (value,) * rng.choice([1, 5, 100]))[way - 1]
