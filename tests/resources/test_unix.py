"""Unix sockets: what can't be saved."""
from __future__ import annotations


def test_packets_behind_an_error(refused):
    """The other end was closed with something unread: the error comes first, and whoever looks takes it."""
    error = refused("""
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        other.send(b"farewell")
        one.send(b"to nobody")
        other.close()
        """, """
        try: one.recv(20); raise SystemExit("no error")
        except ConnectionResetError: pass
        assert one.recv(20) == b"farewell" and one.recv(20) == b""
        """)
    assert "packets, and an error before them, that are not read yet" in str(error)
    assert error.passing
