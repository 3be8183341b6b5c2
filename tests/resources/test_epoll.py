"""Event polls: what can't be saved."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Takes a descriptor from whoever listens, and keeps it until its standard input ends.
OUTSIDE = """
import socket, sys, time
while True:
    with socket.socket(socket.AF_UNIX) as sock:
        try: sock.connect(sys.argv[1])
        except OSError: time.sleep(0.01); continue
        kept = socket.recv_fds(sock, 1, 1)
        break
sys.stdin.read()
"""


def test_a_target_that_nobody_in_the_job_holds(refused, tmp_path: Path):
    """A process outside has it, so that it is still watched."""
    place = tmp_path / "sock"
    with subprocess.Popen([sys.executable, "-c", OUTSIDE, str(place)], stdin=subprocess.PIPE):
        error = refused(f"""
            import select
            event = os.eventfd(0)
            poll = select.epoll()
            poll.register(event, select.EPOLLIN)
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind({str(place)!r})
                listener.listen()
                with listener.accept()[0] as sock:
                    socket.send_fds(sock, [b"x"], [event])
            number = event
            os.close(event)
            other = os.eventfd(1)
            assert other == number   # the number is taken again
            """, "assert poll.poll(0) == []")
        assert f"an epoll target ({3}) that nobody in the job holds any more" in str(error)
