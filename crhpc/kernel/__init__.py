"""What Linux offers, without an opinion: system calls, ptrace, /proc, netlink.

Every failure is an ``OSError`` that names the system call. Nothing here knows images, jobs or users.
x86-64 only.
"""
