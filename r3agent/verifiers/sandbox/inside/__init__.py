"""Set up the sandbox from inside, as a separate script that imports only the standard library.

`launch.main` is the supervisor. It starts in a fresh interpreter, because a process with threads must not fork, and
with this folder's parent on its path, because importing `r3agent` costs more than most programs that it runs.
"""
