"""TCP proxies that misbehave when told to, in a process of their own: a busy client must not slow them down.

Run as a program it makes a proxy for each `name=host:port` of its arguments, prints their ports, and then
obeys lines of `name mode`, each of which it repeats when done. It ends with its standard input.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from enum import Enum
from typing import Self

import uvloop

HOST = "127.0.0.1"
CHUNK = 1 << 18  # bytes
LATENCY = 0.2  # seconds that whatever is on its way takes longer, each way
TRICKLE = 64  # bytes at a time
PAUSE = 0.02  # seconds between them
RESET_EVERY = 0.1  # seconds between two resets at most


class Mode(Enum):
    """What happens to connections."""

    CLEAR = "clear"
    LATENCY = "latency"
    """Everything comes later."""
    RESET = "reset"
    """Connections end with RST, one after the other."""
    BLACK_HOLE = "black-hole"
    """Connections are taken, and nothing passes; when that ends, what was held goes on."""
    HALF_OPEN = "half-open"
    """Connections that stand are dead without a FIN, and stay so; new ones live."""
    TRICKLE = "trickle"
    """Some bytes now and then, as of a slow loris."""


class Proxy:
    """Passes connections on to `target`, as `mode` says."""

    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self._mode = Mode.CLEAR
        self._changed = asyncio.Event()
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server
        self._resetting: asyncio.Task[None]

    async def start(self) -> int:
        """Listens; returns the port."""
        self._server = await asyncio.start_server(self._serve, HOST, 0, limit=CHUNK)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def set(self, mode: Mode) -> None:
        """Changes what happens, from now on, to what stands and what comes."""
        self._mode = mode
        self._changed.set()
        self._changed = asyncio.Event()
        if mode is Mode.RESET:
            self._resetting = asyncio.create_task(self._reset_all())
        if mode is Mode.HALF_OPEN:
            for connection in self._connections:
                connection.dead = True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(writer)
        self._connections.add(connection)
        try:
            while self._mode is Mode.BLACK_HOLE:
                await self._changed.wait()
            there, back = await asyncio.open_connection(*self._target, limit=CHUNK)
            connection.writers.append(back)
            pumps = (self._pump(connection, reader, back), self._pump(connection, there, writer))
            tasks = [asyncio.ensure_future(pump) for pump in pumps]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if connection.dead:  # the other end is not told: it must find out by itself
                await asyncio.wait(tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        except OSError:  # nobody listens there
            pass
        finally:
            self._connections.discard(connection)
            connection.reset()

    async def _pump(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(CHUNK):
            while data and not connection.dead:
                data = await self._step(data, writer)
            if not connection.dead:
                await writer.drain()

    async def _reset_all(self) -> None:
        while self._mode is Mode.RESET:
            for connection in tuple(self._connections):
                connection.reset()
                await asyncio.sleep(random.uniform(0, RESET_EVERY))
            await asyncio.sleep(RESET_EVERY)

    async def _step(self, data: bytes, writer: asyncio.StreamWriter) -> bytes:
        """Passes some of it on; returns the rest."""
        changed = self._changed
        match self._mode:
            case Mode.LATENCY:
                await asyncio.sleep(LATENCY)
            case Mode.BLACK_HOLE:
                await changed.wait()
                return data
            case Mode.TRICKLE:
                writer.write(data[:TRICKLE])
                await asyncio.sleep(PAUSE)
                return data[TRICKLE:]
        writer.write(data)
        return b""


class _Connection:
    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writers = [writer]
        self.dead = False

    def reset(self) -> None:
        """Ends both sides with RST."""
        for writer in self.writers:
            if not writer.is_closing():
                raw = writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class Proxies:
    """The process with the proxies, by name each for a `host:port`. `ports` are where they listen."""

    def __init__(self, targets: Mapping[str, str]) -> None:
        arguments = [f"{name}={target}" for name, target in targets.items()]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ports: dict[str, int] = json.loads(self._read())

    def set(self, name: str, mode: Mode) -> None:
        """Changes a proxy's mode; returns when that is done."""
        assert self._process.stdin is not None
        line = f"{name} {mode.value}\n"
        self._process.stdin.write(line)
        self._process.stdin.flush()
        assert self._read() == line, "the proxies do not obey"

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # it ends with its input


async def main(arguments: list[str]) -> None:
    """Serves until its standard input ends."""
    made = {name: Proxy(target) for name, target in (each.split("=", 1) for each in arguments)}
    print(json.dumps({name: await proxy.start() for name, proxy in made.items()}), flush=True)
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        name, mode = line.decode().split()
        made[name].set(Mode(mode))
        print(line.decode(), end="", flush=True)
    os._exit(0)  # nothing here is worth an orderly end


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1:]))
