"""Runs the app in a process: uvicorn, ended in an order that lets open event streams go first."""

import socket

import uvicorn
from fastapi import FastAPI

from service import logs, tracing
from service.app import create_app
from service.heads import BoundedHeads
from service.settings import Settings

SECONDS_TO_ANSWER = 10  # for requests under way when the server is told to stop


class Server(uvicorn.Server):
    """A server whose event streams end when it is told to stop; uvicorn would wait for them."""

    def __init__(self, settings: Settings) -> None:
        self.app: FastAPI = create_app(settings)
        super().__init__(
            uvicorn.Config(
                self.app,
                settings.host,
                settings.port,
                http=BoundedHeads,
                timeout_graceful_shutdown=SECONDS_TO_ANSWER,
                lifespan="on",
                access_log=False,
                log_config=None,
            )
        )

    @property
    def address(self) -> str:
        """Where it listens, once it does."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://{host}:{port}"

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.app.state.context.hub.close()
        await super().shutdown(sockets)


def run(settings: Settings) -> None:
    """Serve until told to stop."""
    logs.set_up(settings.log_format)
    tracing.set_up()
    Server(settings).run()
