"""Starts one server as its child and stops it when the parent is gone, however the parent went.

Run as a script, `guard.py STOP_SIGNAL USER COMMAND...` (USER may be empty: stay who we are). Standard input
is the lifeline: the parent holds its write end, so end-of-file means that the parent is gone. SIGTERM asks
for the same stop. Standard output gets one line, the server's pid; standard error is the server's log.
The exit code is the server's own, or 128 + N when signal N ended it.
"""

import contextlib
import os
import pwd
import select
import signal
import sys
import time

STOP_SECONDS = 30.0  # from the stop signal to SIGKILL
POLL_SECONDS = 0.02
NOT_STARTED = 127  # what a shell exits with when a command cannot be run
IGNORED = (signal.SIGINT, signal.SIGHUP)  # a terminal's signals are for the parent to decide upon
WOKEN_BY = (signal.SIGCHLD, signal.SIGTERM)
PYTHON_IGNORES = (signal.SIGPIPE, signal.SIGXFSZ)  # unlike what programs expect to be started with


def signal_family(pid: int, signum: int) -> None:
    """Send a signal to a process and all its descendants; those already gone are passed over."""
    _send(pid, signal.SIGSTOP)  # so that it starts no further child while we look
    for member in _family(pid):
        _send(member, signum)


def _send(pid: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS refuses signals to zombies
        os.kill(pid, signum)


def _family(pid: int) -> list[int]:
    parents = dict(_parents())
    family = [pid]
    for member in family:  # grows while we walk it
        family += [child for child, parent in parents.items() if parent == member]
    return family


def _parents() -> list[tuple[int, int]]:
    """Pid and parent's pid of every process; backends lead sessions of their own, so groups do not do."""
    if not os.path.exists("/proc/self/stat"):  # macOS
        with os.popen("ps -A -o pid=,ppid=") as table:  # noqa: S605, S607 - a constant command of the system
            return [(int(pid), int(parent)) for pid, parent in map(str.split, table)]
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as stat:
            found.append((int(pid), int(stat.read().rpartition(b")")[2].split()[1])))
    return found


def _spawn(user: str, command: list[str]) -> int:
    if pid := os.fork():
        return pid
    try:
        os.setsid()
        if user:
            entry = pwd.getpwnam(user)
            os.setgroups([])
            os.setgid(entry.pw_gid)
            os.setuid(entry.pw_uid)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        for signum in (*IGNORED, *WOKEN_BY, *PYTHON_IGNORES):
            signal.signal(signum, signal.SIG_DFL)
        os.execvp(command[0], command)  # noqa: S606 - running the given command is our purpose
    except (OSError, KeyError) as error:
        os.write(2, f"{command[0]}: {error}\n".encode())
    finally:
        os._exit(NOT_STARTED)


def _exit_code(pid: int, options: int = os.WNOHANG) -> int | None:
    ended, status = os.waitpid(pid, options)
    if not ended:
        return None
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _watch(pid: int, stop_signal: int, wake: int) -> int | None:
    while (code := _exit_code(pid)) is None:
        ready, _, _ = select.select([0, wake], [], [])
        if 0 in ready or signal.SIGTERM in os.read(wake, select.PIPE_BUF):
            break
    else:
        return code
    _send(pid, stop_signal)
    signal_family(pid, signal.SIGCONT)  # a frozen process would not see the signal
    deadline = time.monotonic() + STOP_SECONDS
    while (code := _exit_code(pid)) is None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    if code is None:
        signal_family(pid, signal.SIGKILL)
        code = _exit_code(pid, 0)
    return code


def main(stop_signal: str, user: str, *command: str) -> int | None:
    """Run the command to its end, or until we have to stop it, and give its exit code."""
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    for signum in IGNORED:
        signal.signal(signum, signal.SIG_IGN)
    for signum in WOKEN_BY:
        signal.signal(signum, lambda *_: None)
    pid = _spawn(user, list(command))
    with contextlib.suppress(BrokenPipeError):
        os.write(1, b"%d\n" % pid)
    os.close(1)
    code = _watch(pid, int(stop_signal), wake)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)  # what the server may have left behind
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
