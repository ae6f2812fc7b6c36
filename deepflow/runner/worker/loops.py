"""Event loops for async tasks: one, with one async HTTP client, in each worker thread."""

from __future__ import annotations

import asyncio
import threading
from contextvars import copy_context
from typing import Any

from prefect.context import AsyncClientContext

__all__ = ["loops"]


class _Loops(threading.local):
    """One event loop, with one async HTTP client, per worker thread."""

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None
        self._clients: dict[str, AsyncClientContext] = {}

    def run(self, coroutine: Any) -> None:
        """Run a coroutine to its end in this thread, in the current contexts."""
        if self._runner is None:
            self._runner = asyncio.Runner()
        self._runner.run(self._with_client(coroutine), context=copy_context())

    async def _with_client(self, coroutine: Any) -> None:
        from prefect.settings import PREFECT_API_URL

        url = str(PREFECT_API_URL.value())
        context = self._clients.get(url)
        if context is None:
            context = AsyncClientContext()
            # As in `scope.RunScope`: the server is not asked for its version again.
            await context.client.__aenter__()
            context._context_stack = 1
            self._clients[url] = context
        AsyncClientContext.__var__.set(context)
        await coroutine


loops = _Loops()
