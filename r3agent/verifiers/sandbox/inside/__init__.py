"""Set up the sandbox from inside, as a script of its own: the standard library only, and nothing of r3agent.

`launch.main` is the supervisor. It starts in a fresh interpreter, because a process with threads must not fork, and
with this folder's parent on its path, because importing `r3agent` costs more than most programs that it runs.
"""
