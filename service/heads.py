"""How a request's head is read: fast, and no longer than a head may be."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_BYTES = 65_536  # of lines and fields before a body, and of what follows a chunked one


class BoundedHeads(HttpToolsProtocol):
    """uvicorn's protocol on httptools, which alone would keep any number of bytes of a head that does not end."""

    _unread = 0  # bytes since a head, or a piece of a body, was complete

    def data_received(self, data: bytes) -> None:
        self._unread += len(data)
        super().data_received(data)
        if self._unread > MOST_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The head of the request is longer than {MOST_BYTES} bytes.")

    def on_headers_complete(self) -> None:
        self._unread = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unread = 0
        super().on_message_complete()
