"""`token-broker demo`, as a user starts it."""

import asyncio
import os
import re
import signal
import sys
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]


class DemoProcess:
    """
    The process group of a demo.

    Attributes:
        url: Where its page is.
        config: The path of its configuration.
        errors: What it wrote to standard error; whole once it has ended.
    """

    def __init__(self, *arguments: str) -> None:
        self.url = ""
        self.config = Path()
        self.errors = ""
        self._arguments = arguments
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[bytes] | None = None

    async def __aenter__(self) -> Self:
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "broker",
            "demo",
            *self._arguments,
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        self._reading = asyncio.get_running_loop().create_task(process.stderr.read())
        async with asyncio.timeout(30):
            while line := (await process.stdout.readline()).decode():
                if found := re.search(r"open +(\S+)", line):
                    self.url = found[1]
                if found := re.search(r"config +(\S+)", line):
                    self.config = Path(found[1])
                if "Ctrl-C" in line:
                    break
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._process is not None and self._process.returncode is None:
            await self.stop(signal.SIGTERM)

    async def stop(self, number: signal.Signals, *, whole_group: bool = True) -> int:
        """Send a signal, as Ctrl-C does to the whole group, and return the exit code."""
        assert self._process is not None
        assert self._reading is not None
        if whole_group:
            os.killpg(self._process.pid, number)
        else:
            self._process.send_signal(number)
        async with asyncio.timeout(30):
            code = await self._process.wait()
            self.errors = (await self._reading).decode()
        return code

    async def exit_code(self) -> int:
        """Wait for a demo that ends by itself."""
        assert self._process is not None
        assert self._reading is not None
        async with asyncio.timeout(30):
            code = await self._process.wait()
            self.errors = (await self._reading).decode()
        return code
