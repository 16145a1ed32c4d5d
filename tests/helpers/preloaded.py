"""A process that has imported dynts, which takes seconds, and forks for every `dynts` or `python` of a shell.

Run as a program with the path of a socket it is that process; `Shell` starts it, and runs commands of a shell, in which
`dynts` and `python` are it.
"""

import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CLIENT = """#!{python} -IS
import json, os, signal, socket, struct, sys
there = socket.socket(socket.AF_UNIX)
there.connect({path!r})
call = json.dumps([{name!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(there, [struct.pack("q", len(call))], [0, 1, 2])
there.sendall(call)
pid = struct.unpack("q", there.recv(8))[0]
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: os.kill(pid, number))
sys.exit(struct.unpack("q", there.recv(8))[0])
"""
"""What stands on the path for a program: hands its call over, and ends as that ends."""


class Shell:
    """Runs blocks of bash in a folder, where `dynts` and `python` need no time to import anything.

    Args:
        tools: an empty folder.
    """

    def __init__(self, tools: Path) -> None:
        path = tools / "socket"
        self.tools = tools
        self._server = subprocess.Popen([sys.executable, __file__, str(path)], start_new_session=True)
        for name in ("dynts", "python"):
            program = tools / name
            program.write_text(CLIENT.format(python=sys.executable, path=str(path), name=name), encoding="utf-8")
            program.chmod(0o755)
        while not path.exists():
            assert self._server.poll() is None, "the process that has imported dynts has ended"
            time.sleep(0.05)

    def run(self, block: str, folder: Path) -> tuple[int, str, int]:
        """Run a block; what it leaves in the background goes on.

        Args:
            block: of bash; it ends at the first command that fails.
            folder: in which it is run.

        Returns:
            the exit code, all that was printed, and the group of processes to end, should any be left.
        """
        environment = os.environ | {"PATH": f"{self.tools}{os.pathsep}{os.environ['PATH']}"}
        printed = self.tools / "printed"
        with printed.open("wb") as out:
            bash = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", block],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            code = bash.wait()
        return code, printed.read_text(encoding="utf-8", errors="replace"), bash.pid

    def close(self) -> None:
        """End the process, and what it has started."""
        os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait()


def end_group(group: int) -> None:
    """End a group of processes, if any is left of it, and wait until none is."""
    try:
        os.killpg(group, signal.SIGTERM)
        while True:
            os.killpg(group, 0)
            time.sleep(0.05)
    except ProcessLookupError:
        pass


def import_all() -> None:
    """Import every module of dynts that can be imported here."""
    import dynts

    for module in pkgutil.walk_packages(dynts.__path__, "dynts."):
        if not any(part in module.name for part in (".vllm", ".sglang", "__main__")):
            importlib.import_module(module.name)


def serve(path: str) -> None:
    """Answer calls, each in a process of its own, which another one waits for."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks for those that wait
    here = socket.socket(socket.AF_UNIX)
    here.bind(path + ".new")
    here.listen()
    os.rename(path + ".new", path)
    while True:
        there, _ = here.accept()
        if os.fork() == 0:
            here.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _answer(there)
            os._exit(0)
        there.close()


def _answer(there: socket.socket) -> None:
    head, files, _, _ = socket.recv_fds(there, 8, 3)
    call, left = b"", struct.unpack("q", head)[0]
    while len(call) < left:
        call += there.recv(left - len(call))
    pid = os.fork()
    if pid == 0:
        there.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os._exit(_run(*json.loads(call)))
    for file in files:
        os.close(file)
    there.sendall(struct.pack("q", pid))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    there.sendall(struct.pack("q", code if code >= 0 else 128 - code))


def _run(name: str, arguments: list[str], folder: str, environment: dict[str, str]) -> int:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", 1, closefd=False)
    code: Any = 0
    try:
        if name == "dynts":
            sys.argv = [name, *arguments]
            from dynts.cli import main

            main()
        elif arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            exec(arguments[1], {"__name__": "__main__"})
        else:
            sys.argv = arguments
            sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


if __name__ == "__main__":
    import_all()
    serve(sys.argv[1])
