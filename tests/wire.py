"""What goes over the wire to a database, counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

from services.chassis.database import Database


class Wire:
    """Passes on what goes to a database, and counts the statements in it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._to = (parts.hostname, parts.port)
        self._url = url
        self.statements = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Database]:
        """A pool of one connection over the wire."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        database = await Database.open(
            self._url.replace(f":{self._to[1]}/", f":{port}/") + "?sslmode=disable", size=1, name="wire"
        )
        try:
            yield database
        finally:
            await database.close()
            server.close()

    async def _serve(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        answers, forth = await asyncio.open_connection(*self._to)
        returning = asyncio.create_task(self._pass_on(answers, back))
        with suppress(asyncio.IncompleteReadError):
            kind = b""  # the first message has none
            while True:
                size = await client.readexactly(4)
                body = await client.readexactly(int.from_bytes(size) - 4)
                self.statements += kind in (b"E", b"Q")  # execute; a simple query
                forth.write(kind + size + body)
                kind = await client.readexactly(1)
        forth.close()
        await returning

    async def _pass_on(self, answers: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        while some := await answers.read(65536):
            back.write(some)
        back.close()
