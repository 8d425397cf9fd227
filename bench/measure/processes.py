"""Processes that are started here, and end with the run whichever way it ends."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
STOP_SECONDS = 30.0


class Failed(Exception):
    """Something could not be started or measured; the run goes on without it."""


def free_port() -> int:
    """A port that is free and whose successor is free too, below the range of outgoing connections."""
    while True:
        port = random.randrange(20_000, 32_000)
        if not any(in_use(one) for one in (port, port + 1)):
            return port


def in_use(port: int) -> bool:
    """Somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(what: str, seconds: float, probe: Callable[[], bool], pause: float = 0.05) -> None:
    """Repeats `probe` until it is true; raises Failed at the deadline."""
    deadline = time.monotonic() + seconds
    while not probe():
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {seconds:g} s")
        time.sleep(pause)


@dataclass(frozen=True)
class Usage:
    """What a process and its children have used so far."""

    cpu_seconds: float
    resident_mib: float
    peak_mib: float


class Process:
    """A program in a session of its own, so that Ctrl-C reaches it only through us."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.name, self.log = name, log
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                command, env=dict(env), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    def alive(self) -> bool:
        """It has not ended."""
        return self._child.poll() is None

    def must_live(self) -> bool:
        """True; raises Failed with the end of its log when it has ended."""
        if not self.alive():
            raise Failed(f"{self.name} has ended with {self._child.returncode}: {tail(self.log)}")
        return True

    def usage(self) -> Usage:
        """Of all processes in its session: CPU time, resident memory, and the sum of their peaks."""
        cpu = resident = peak = 0.0
        for pid in self._session():
            with contextlib.suppress(OSError, KeyError):
                fields = stat_fields(pid)
                cpu += (int(fields[11]) + int(fields[12])) / TICKS
                memory = memory_kib(pid)
                resident += memory["VmRSS"] / 1024
                peak += memory["VmHWM"] / 1024
        return Usage(cpu, resident, peak)

    def _session(self) -> Iterator[int]:
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    if stat_fields(int(entry))[3] == str(self._child.pid):
                        yield int(entry)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL to whatever is left of its group."""
        if self.alive():
            self._child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()


def stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on, see proc(5); the name before it may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def memory_kib(pid: int) -> dict[str, int]:
    """The sizes in /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if name[:2] == "Vm"}


def tail(log: Path, lines: int = 5) -> str:
    """The end of a log, on one line."""
    return " | ".join(log.read_text(errors="replace").splitlines()[-lines:])


class Processes:
    """Starts processes into one folder of logs; leaving the block ends what still runs, the last one first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> Process:
        """Starts a program; `env` comes on top of this process's environment."""
        process = Process(name, command, {**os.environ, **env}, self.folder / f"{name}.log")
        self._stack.callback(process.stop)
        return process

    @contextlib.contextmanager
    def running(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> Iterator[Process]:
        """The same, for the length of a block."""
        process = Process(name, command, {**os.environ, **env}, self.folder / f"{name}.log")
        try:
            yield process
        finally:
            process.stop()


def run(command: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None, seconds: float = 1800) -> str:
    """Runs a tool to its end and gives its output; raises Failed with the end of its messages."""
    child = subprocess.Popen(
        command, env={**os.environ, **(env or {})}, cwd=cwd, text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    try:
        output, errors = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{command[0]}: not done after {seconds:g} s") from error
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if child.returncode != 0:
        raise Failed(f"{' '.join(command[:3])} ended with {child.returncode}: {' | '.join((errors or output).splitlines()[-4:])}")
    return output
