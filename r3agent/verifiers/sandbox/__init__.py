"""Runs a Python program that nobody vouches for, on Linux, with what an ordinary user has.

What holds it, in layers; a program is not run where one of them is missing, unless `layers` names fewer:

- `namespaces` (user, pid, mount, net, ipc, uts): a root directory of its own with the standard library and shared
  libraries read-only and an empty `/tmp` in memory, no `/proc`, no network interface that is up, no process to see but
  its own. All of them are killed with its first, whatever they did to their session, group, parents or signals.
- `landlock`: files below these directories only, nothing to execute, no TCP, no abstract Unix socket.
- `seccomp`: no socket but pairs of streams, no other program, no tracing, mounting, namespaces, io_uring, limits of
  others, or memory that limits do not count.

With all of them: an empty environment, no open file but stdin, stdout and stderr, no capabilities, `no_new_privs`, user
nobody where r3agent is root, and the limits of `Limits`. Output is kept up to its limit only, and going over it, or
over the wall time, ends all. If r3agent is killed, so is the program.

Without `namespaces` (in Docker with its default profile, say): `layers = ["landlock", "seccomp"]`. The program then
can start no process, send no signal and make no socket. `disk_mb` holds for each file and not in all, it sees the
machine's name and process ids, it can ask for the names that links hold and for the size, owner and times of any file
that r3agent could ask for, and its directory is a temporary one on disk.

What it does not protect from:

- A hole in the kernel. The program makes system calls of this kernel; who must expect attacks on it needs a virtual
  machine, or a container runtime with a kernel of its own.
- Use of what it is allowed: up to `processes` times `memory_mb` and `cpu_s` before the wall time ends it, for memory
  and CPU are limited for each process, and in total only by a cgroup, which an ordinary user may not have. So
  `processes * memory_mb`, times the programs that run at once, should fit the machine.
- Slowing others down: CPU caches, memory bandwidth and the disk are shared, and what they tell by their timing.
- Reading what everyone may read in the shared directories: the standard library, `/usr/lib`, `/lib`.
- Programs on other systems. On macOS and Windows there is no sandbox, only a container.

A container instead: `command` starts a Python in it, and the options `-I -X utf8 -c PROGRAM` are appended, e.g.

    ["docker", "run", "--rm", "-i", "--init", "--network", "none", "--read-only", "--tmpfs", "/tmp",
     "--cap-drop", "ALL", "--memory", "512m", "--pids-limit", "64", "python:3.12-slim",
     "timeout", "-k", "1", "30", "python"]

It holds what it is told to hold: r3agent sets the limits that a process sets on itself, caps the output and, after the
wall time, asks the command to end and then kills it. What the command has started elsewhere, such as a container, it
has to end itself; hence `--init` and `timeout`.
"""

from r3agent.verifiers.sandbox.layers import LAYERS, Layer
from r3agent.verifiers.sandbox.limits import Limits, Outcome
from r3agent.verifiers.sandbox.process import run_dialogue, run_python

__all__ = ["LAYERS", "Layer", "Limits", "Outcome", "run_dialogue", "run_python"]
