"""What of shared tables is refused; what is saved is in tests/programs/tables.c."""
from __future__ import annotations

from .forking import forking

_BEAR = """
import mmap
stack = mmap.mmap(-1, 65536)
top = ctypes.addressof(ctypes.c_char.from_buffer(stack)) + 65536
child = libc.clone(libc.pause, ctypes.c_void_p(top), {flags} | signal.SIGCHLD, None)
assert child > 0
"""
_ENDS = "os.kill(child, 9); os.waitpid(child, 0x40000000)"


def test_memory_that_processes_share_is_refused(refused):
    error = refused(forking(_BEAR.format(flags=0x100)), _ENDS)   # CLONE_VM
    assert "memory that is shared with process 2" in str(error)


def test_signal_actions_that_processes_share_go_with_memory(refused):
    error = refused(forking(_BEAR.format(flags=0x100 | 0x800)), _ENDS)   # CLONE_SIGHAND
    assert "memory that is shared" in str(error)


def test_a_copy_of_the_same_memory_is_not_taken_for_it(holding):
    subject = holding(forking("fork(); fork()"))
    subject.checkpoint()
    subject.check()


def test_descriptors_of_a_thread_of_its_own_are_refused(refused):
    error = refused(forking("threaded(lambda: call('unshare', 0x400))"))
    assert "a thread with a descriptor table of its own" in str(error)


def test_a_directory_that_some_threads_share_is_refused(refused):
    """A thread that has left, and made another one that follows it."""
    error = refused(forking("""
        def leave():
            call("unshare", 0x200)
            threaded(lambda: None)
        threaded(leave)
    """))
    assert "a working directory that some of its threads share" in str(error)


def test_tables_of_unrelated_processes_are_refused(refused):
    """A grandchild has its grandparent's descriptors; the process in between has left them."""
    error = refused(forking("""
        first, second = os.pipe()
        child = libc.syscall(56, 0x400 | signal.SIGCHLD, None, None, None, None)
        if child == 0:
            grandchild = libc.syscall(56, 0x400 | signal.SIGCHLD, None, None, None, None)
            if grandchild:
                call("unshare", 0x400)
                os.write(second, b"x")
            while True:
                signal.pause()
        os.read(first, 1)
    """), "os.kill(child, 9)")
    assert "it shares tables with processes that are neither its parent nor its siblings" in str(error)
