"""The foreground process of ``crhpc run`` and ``crhpc restart``.

It launches the agents, hands them the job's standard streams, passes signals on, takes requests from the
other commands, has images verified and old ones removed, and ends with the job's exit code. No MPI and no
image code runs in it, and while nothing happens it sleeps. The agents end the job when the connection to
the supervisor closes, so its death leaves nothing behind.

Everything arrives on a descriptor: agents and other commands on an abstract socket, signals from
crhpc.signals, output and end of the children from a pipe and a pidfd. Messages are listed in
docs/cli.md.
"""
from __future__ import annotations

import hmac
import os
import secrets
import selectors
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from crhpc import errors
from crhpc.channel import Channel, ChannelClosed, Message
from crhpc.heartbeat import Monitor, address_towards
from crhpc.jobdir import JobDirectory, JobState, Status
from crhpc.launch import Child, Peer, launch_agents
from crhpc.progress import Report, checkpoint_line, duration, ended, plain, plural
from crhpc.requests import Requests
from crhpc.retention import Retention
from crhpc.signals import Received, Signals
from crhpc.task import Options, Task, order
from crhpc.verify import Checking

HELLO_SECONDS = 120.0
"""For the agents to come up: MPI on a busy machine takes seconds, not minutes."""
_PATIENCE = 10.0     # for a peer in the middle of a message, and for agents that end
_EOF_SECONDS = 5.0   # from the launcher's end to the agent's


class Supervisor:
    """One job, from launch to exit code."""

    def __init__(self, directory: JobDirectory, task: Task, options: Options, report: Report) -> None:
        self._directory = directory
        self._task = task
        self._options = options
        self._report = report
        self._state = task.state
        self._secret = secrets.token_hex(32)
        self._name = f"crhpc-{secrets.token_hex(16)}"
        self._selector = selectors.DefaultSelector()
        self._retention = Retention(directory.path, options.keep, task.state.superseded)
        self._requests = Requests(self._status, report)
        self._deadline: tuple[float, Callable[[], None]] | None = None
        self._agents: Child | None = None
        self._checker: Child | None = None
        self._checking: Checking | None = None
        self._monitor: Monitor | None = None
        self._agent: Channel | None = None
        self._agent_process: Peer | None = None
        self._agent_host = socket.gethostname()
        self._running = False
        self._interrupts = 0
        self._last: Message | None = None
        self._last_image = task.image
        self._safe_since = 0.0
        self._result: int | None = None

    def run(self) -> int:
        """Launch the agents and stay until the job is over. Returns: the exit code.

        Raises:
            errors.NoImage, errors.ImageDamaged: the image can't be restarted; nothing was begun.
            errors.LaunchFailed: the agents don't come up.
            errors.AgentLost: they went away, and the job with them.
            errors.Unwritable: the job directory can't be written.
        """
        with ExitStack() as stack:
            signals = stack.enter_context(Signals())
            listener = stack.enter_context(self._listen())
            stack.callback(self._end)
            self._watch(signals, lambda: self._on_signals(signals))
            self._watch(listener, lambda: self._accept(listener))
            self._directory.announce(self._name, self._state.id)
            self._launch()
            self._verify()
            while self._result is None:
                self._turn()
        return self._result

    # -- the loop -----------------------------------------------------------------------------------
    def _turn(self) -> None:
        for key, _ in self._selector.select(self._timeout()):
            if self._result is None and key.fileobj in self._selector.get_map():
                key.data()
        if self._deadline is not None and time.monotonic() >= self._deadline[0]:
            self._deadline[1]()
        if self._checking is not None and time.monotonic() >= self._checking.expires:
            self._verified()
        if self._monitor is not None and time.monotonic() >= self._monitor.due:
            self._listen_for_life()
        self._requests.expire()

    def _timeout(self) -> float | None:
        times = [self._requests.next_expiry(), self._deadline[0] if self._deadline else None,
                 self._checking.expires if self._checking else None,
                 self._monitor.due if self._monitor is not None else None]
        waits = [moment - time.monotonic() for moment in times if moment is not None]
        return max(0.0, min(waits)) if waits else None

    def _watch(self, source: Any, callback: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, callback)

    def _unwatch(self, source: Any) -> None:
        with suppress(KeyError, ValueError):
            self._selector.unregister(source)

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(f"\0{self._name}")
        listener.listen()
        return listener

    # -- children -----------------------------------------------------------------------------------
    def _launch(self) -> None:
        launch = self._options.launch
        if len(launch.hosts) > 1:
            address = address_towards(launch.hosts[1])
            self._monitor = Monitor(address, self._secret, len(launch.hosts), launch.patience)
            self._watch(self._monitor, self._listen_for_life)
            launch = replace(launch, monitor=self._monitor.name)
        self._agents = agents = launch_agents(os.environ, self._name, self._secret, launch)
        self._watch(agents.output, lambda: self._drain(agents, lambda: None))
        self._watch(agents.pidfd, self._launcher_ended)
        self._deadline = (time.monotonic() + HELLO_SECONDS, self._no_hello)

    def _verify(self) -> None:
        """Have the image verified while the agents come up; they are told of it only when it is whole."""
        if self._task.image is not None:
            self._checking = checking = Checking(self._task.image)
            self._watch(checking.child.output, lambda: self._drain(checking.child, self._verified))

    def _verified(self) -> None:
        checking, self._checking = self._checking, None
        assert checking is not None
        checking.finish()
        if self._agent is not None:
            self._send(order(self._task, self._options, self._directory.path), fds=(0, 1, 2))

    def _listen_for_life(self) -> None:
        lost = self._monitor.turn() if self._monitor is not None else []
        if lost and self._result is None and self._monitor is not None:
            self._agent_host = self._options.launch.hosts[lost[0]]
            silent = lost[0] in self._monitor.silent
            self._agent_lost(f"no sign of life for {duration(self._options.launch.patience)}" if silent else
                             "the connection to it broke")

    def _drain(self, child: Child, at_end: Callable[[], None]) -> None:
        if not child.drain():
            self._unwatch(child.output)
            at_end()

    def _launcher_ended(self) -> None:
        assert self._agents is not None
        self._unwatch(self._agents.pidfd)
        if self._agent is None:
            self._no_hello()
        self._deadline = (time.monotonic() + _EOF_SECONDS, self._agent_lost)

    def _no_hello(self) -> None:
        assert self._agents is not None
        status = self._agents.wait(0)
        why = f"no agent came within {duration(HELLO_SECONDS)}"
        if status is not None:
            why = f"it ended with {ended(status)}"
        self._quote_agents()
        raise errors.LaunchFailed(launcher=Path(self._agents.argv[0]).name, why=why,
                                  cure="`crhpc doctor` checks MPI, and CRHPC_MPIEXEC names another mpiexec")

    def _agent_lost(self, why: str = "") -> None:
        assert self._agents is not None
        self._let_agent_go()
        lost = self._lost_hosts()   # the other agents end, too
        if lost and not why:
            self._agent_host, why = lost[0], f"no sign of life for {duration(self._options.launch.patience)}"
        self._let_monitor_go()
        self._agents.end(_EOF_SECONDS)
        status = self._agents.wait(0)
        why = why or ("the connection to it broke" if status is None else f"its launcher ended with {ended(status)}")
        if self._running:
            self._record_end(Status.FAILED, None)
        self._quote_agents()
        raise errors.AgentLost(host=self._agent_host, why=why, lost=lost)

    def _lost_hosts(self) -> list[str]:
        """The hosts of which nothing is heard; on the others the agents have ended by now."""
        if self._monitor is None:
            return []
        return [self._options.launch.hosts[rank] for rank in sorted(self._monitor.dismiss())]

    def _let_agent_go(self) -> None:
        if self._agent is not None:
            self._unwatch(self._agent)
            self._agent.close()

    def _let_monitor_go(self) -> None:
        if self._monitor is not None:
            self._unwatch(self._monitor)
            self._monitor.close()
            self._monitor = None

    def _quote_agents(self) -> None:
        assert self._agents is not None
        self._report.release()
        self._agents.drain()
        self._report.quote(self._agents.tail)

    def _check_images(self) -> None:
        try:
            child = self._retention.next_child(os.environ)
        except OSError as error:
            self._report.once(f"cannot verify new images, so old ones are kept: {error}")
            return
        if child is not None:
            self._checker = child
            self._watch(child.output, lambda: self._drain(child, lambda: self._checked(child)))

    def _checked(self, child: Child) -> None:
        child.wait(None)
        child.close()
        self._checker = None
        if why := self._retention.ended(child.tail):
            self._report.once(f"{why}; older images are kept")
        self._check_images()

    # -- peers --------------------------------------------------------------------------------------
    def _accept(self, listener: socket.socket) -> None:
        sock, _ = listener.accept()
        channel = Channel(sock)
        if channel.peer_uid() not in (os.getuid(), 0):
            channel.close()
            return
        sock.settimeout(_PATIENCE)
        self._watch(channel, lambda: self._from_peer(channel))

    def _from_peer(self, channel: Channel) -> None:
        try:
            message = _receive(channel)
        except (ChannelClosed, TimeoutError):
            message = {"op": "bye"}
        match message.get("op"):
            case "hello" if self._agent is None and self._knows_secret(message):
                self._unwatch(channel)
                self._welcome(channel, message)
            case "checkpoint":
                self._requests.checkpoint(channel, stop=bool(message.get("stop")))
            case "status":
                self._requests.status(channel)
            case _:
                self._unwatch(channel)
                self._requests.forget(channel)
                channel.close()

    def _knows_secret(self, message: Message) -> bool:
        secret = str(message.get("secret")).encode("utf-8", "replace")
        return hmac.compare_digest(secret, self._secret.encode())

    def _welcome(self, channel: Channel, hello: Message) -> None:
        channel.socket.settimeout(None)
        self._agent = channel
        self._agent_process = Peer(channel)
        self._agent_host = str(hello.get("host"))
        self._deadline = None
        self._watch(channel, self._from_agent)
        if self._checking is None:
            self._send(order(self._task, self._options, self._directory.path), fds=(0, 1, 2))

    def _send(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        if self._agent is not None:
            with suppress(ChannelClosed):   # its end of file comes next, and says more
                self._agent.send(message, fds)

    # -- the agent's messages -----------------------------------------------------------------------
    def _from_agent(self) -> None:
        assert self._agent is not None
        try:
            message = _receive(self._agent)
        except (ChannelClosed, TimeoutError):
            self._agent_lost()
            return
        match message["op"]:
            case "started":
                self._on_started(message)
            case "failed":
                self._on_failed(message)
            case "checked":
                self._on_checked(message)
            case "progress":
                self._report.progress(message["phase"], message["done"], message["total"])
                self._requests.progress(message)
            case "checkpointed":
                self._on_checkpointed(message)
            case "checkpoint-failed":
                self._on_checkpoint_failed(message)
            case "warning":
                self._report.once(message["text"])
            case "status":
                self._requests.answer_status(message)
            case "exited":
                self._on_exited(os.waitstatus_to_exitcode(message["status"]))

    def _on_failed(self, message: Message) -> None:
        self._report.clear()
        self._report.release()
        self._report.say(message["error"])
        self._result = int(message["code"])
        if self._running:
            self._record_end(Status.FAILED, None)

    def _on_checked(self, message: Message) -> None:
        """A dry run's result goes to standard output: there is no job that it would belong to."""
        self._report.clear()
        self._report.release()
        name = Path(message["image"]).name
        print("\n".join(map(plain, [*message["plans"], f"{name} can be restarted: "
                                    f"{plural(message['tasks'], 'process')}"])), flush=True)
        self._result = 0

    def _on_started(self, message: Message) -> None:
        self._report.clear()
        self._report.release()
        self._running = True
        self._safe_since = time.monotonic()
        self._record(self._state)
        if self._task.image is not None:
            self._report.say(f"resumed from {self._task.image.name}: {plural(message['tasks'], 'process')} "
                             f"in {duration(message['seconds'])}")
        else:
            every = self._options.every
            when = f"a checkpoint every {duration(every)}" if every else "checkpoints on request"
            self._report.say(f"started, {when}, in {self._directory.path}")
        self._requests.connect(self._send)

    def _on_checkpointed(self, message: Message) -> None:
        self._report.clear()
        if self._last is not None and self._last["number"] == message["number"]:
            self._requests.answer(message)   # several had asked for the same one
            return
        self._report.detail(checkpoint_line(message))
        self._last = {**message, "time": time.time()}
        self._last_image = Path(message["image"])
        self._safe_since = time.monotonic()
        self._requests.answer(message)
        if message.get("stopped"):
            self._record_end(Status.STOPPED, errors.EXIT_CHECKPOINTED)
            self._report.say(f"checkpointed to {self._last_image.name} and ended; "
                             "the same command line resumes it")
            self._result = errors.EXIT_CHECKPOINTED
            return
        self._retention.committed(int(message["number"]))
        self._check_images()

    def _on_checkpoint_failed(self, message: Message) -> None:
        self._report.clear()
        say = self._report.once if message.get("id") is None else self._report.say
        say(message["error"])
        self._requests.answer(message)

    def _on_exited(self, code: int) -> None:
        self._report.clear()
        self._result = code if code >= 0 else 128 - code
        self._record_end(Status.FAILED if code else Status.FINISHED, self._result)
        if code and self._last_image is not None:
            lost = duration(time.monotonic() - self._safe_since)
            self._report.say(f"the job ended with {ended(code)}; the same command line resumes it from "
                             f"{self._last_image.name} ({lost} before the end); --resume never starts afresh")

    def _record_end(self, status: Status, code: int | None) -> None:
        self._state = replace(self._state, status=status, exit_code=code, ended=time.time())
        self._record(self._state)

    def _record(self, state: JobState) -> None:
        try:
            self._directory.write_state(state)
        except errors.Unwritable as error:
            self._report.once(str(error))   # the job matters more

    # -- signals ------------------------------------------------------------------------------------
    def _on_signals(self, signals: Signals) -> None:
        for received in signals.receive():
            if self._result is None:
                self._on_signal(received)

    def _on_signal(self, received: Received) -> None:
        number = received.number
        if number in (signal.SIGUSR1, signal.SIGUSR2):
            self._requests.checkpoint(None, stop=number == signal.SIGUSR2)
            return
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1 and number == signal.SIGINT:
            self._send({"op": "kill"})
            self._on_exited(-signal.SIGINT)
        elif self._running:
            # `fg` continues a whole group, but with kill(2)
            group = received.by_terminal or number == signal.SIGCONT
            self._send({"op": "signal", "signal": int(number), "group": group})
        elif number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            self._result = 128 + number   # nothing runs yet: the agents end when the connection closes
        if number == signal.SIGTSTP:
            self._report.clear()
            os.kill(os.getpid(), signal.SIGSTOP)   # what SIGTSTP would have done, had it not been taken

    # -- for the other commands ---------------------------------------------------------------------
    def _status(self) -> Message:
        """What the supervisor knows of the job by itself."""
        state = self._state
        return {"job": {"id": state.id, "argv": list(state.argv), "cwd": state.cwd, "started": state.started},
                "directory": str(self._directory.path),
                "supervisor": {"host": socket.gethostname(), "pid": os.getpid()},
                "every": self._options.every, "keep": self._options.keep, "running": self._running,
                "resumed_from": self._task.image.name if self._task.image else None,
                "last": self._last, "verified": self._retention.verified}

    # -- the end ------------------------------------------------------------------------------------
    def _end(self) -> None:
        self._report.clear()
        self._report.release()
        self._requests.close(str(self._directory.path))
        if self._checking is not None:
            self._checking.give_up()
        if self._checker is not None:
            self._checker.kill(signal.SIGKILL, group=True)   # what it would have removed stays until the next commit
            self._checker.wait(None)
            self._checker.close()
        self._let_agent_go()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, Channel):
                key.fileobj.close()
        if self._agents is not None:
            self._agents.end(_PATIENCE if self._agent is not None else 0.0)
            self._agents.close()
        if self._agent_process is not None:
            self._agent_process.end(_EOF_SECONDS)
        self._let_monitor_go()
        self._selector.close()


def _receive(channel: Channel) -> Message:
    message, fds = channel.receive()
    for fd in fds:
        os.close(fd)
    return message
