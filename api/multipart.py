"""A multipart upload as a stream: the file's bytes go on as they come, whatever its size; form fields are kept.

The parser runs in the thread that consumes the file (the blob store's), and asks for the next chunk of the body when it
needs one. So a slow store slows the client down, and nothing is spooled to this machine's disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from pipelines.jobs.errors import InvalidParameter, RequestError

_MOST_FIELDS = 64
_LONGEST_FIELD = 4_096
_MOST_PARTS = 128
_LONGEST_NAME = 255


class UnsupportedBody(RequestError):
    """The body is of another content type than the address takes."""

    code = "unsupported_media_type"


class MultipartStream:
    """One body: `file_pieces` first, then `finish`, then `filename`, `media_type` and `fields`.

    `next_chunk` returns the body's next bytes, and None at its end.
    """

    def __init__(self, content_type: str, next_chunk: Callable[[], bytes | None]) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise UnsupportedBody("send the file as multipart/form-data, with the fields file and purpose")
        self.filename = ""
        self.media_type = "application/octet-stream"
        self.fields: dict[str, str] = {}
        self._next_chunk = next_chunk
        self._pieces: deque[bytes] = deque()
        self._file_seen = False
        self._file_open = False
        self._ended = False
        self._parts = 0
        self._headers: dict[str, bytes] = {}
        self._header_name = b""
        self._header_value = b""
        self._field_name: str | None = None
        self._field_value = b""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begin,
                "on_part_data": self._part_data,
                "on_part_end": self._part_end,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_end": self._on_end,
            },
        )

    def file_pieces(self) -> Iterator[bytes]:
        """The bytes of the part named `file`. Raises `InvalidParameter` where there is none."""
        while not self._file_seen and self._feed():
            pass
        if not self._file_seen:
            raise InvalidParameter("the form has no file; add a part named file", param="file")
        while True:
            while self._pieces:
                yield self._pieces.popleft()
            if not self._file_open:
                return
            if not self._feed():
                raise InvalidParameter("the form breaks off inside the file; send it again", param="file")

    def finish(self) -> None:
        """Read what stands behind the file. Raises `InvalidParameter` where the form is cut off."""
        while self._feed():
            pass
        if not self._ended:
            raise InvalidParameter("the form breaks off before its end; send it again", param="file")

    def _feed(self) -> bool:
        chunk = self._next_chunk()
        if chunk is None:
            return False
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise InvalidParameter(f"the form cannot be read: {error}", param="file") from error
        return True

    def _part_begin(self) -> None:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise InvalidParameter(f"the form has more than {_MOST_PARTS} parts")
        self._headers = {}

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._header_name.decode("latin-1").lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name == "file" and not self._file_seen:
            self._file_seen = self._file_open = True
            self.filename = _base_name(options.get(b"filename", b"").decode("utf-8", "replace"))
            self.media_type = self._headers.get("content-type", b"").decode("latin-1") or self.media_type
            return
        if len(self.fields) >= _MOST_FIELDS:
            raise InvalidParameter(f"the form has more than {_MOST_FIELDS} fields")
        self._field_name, self._field_value = name, b""

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file_open:
            self._pieces.append(data[start:end])
            return
        self._field_value += data[start:end]
        if len(self._field_value) > _LONGEST_FIELD:
            raise InvalidParameter(f"the field {self._field_name} is longer than {_LONGEST_FIELD} bytes")

    def _part_end(self) -> None:
        if self._file_open:
            self._file_open = False
        elif self._field_name is not None:
            self.fields[self._field_name] = self._field_value.decode("utf-8", "replace")
            self._field_name = None

    def _on_end(self) -> None:
        self._ended = True


def _base_name(name: str) -> str:
    """The last part of a path, without control characters: it is shown, never opened."""
    last = name.replace("\\", "/").rpartition("/")[2]
    clean = "".join(character for character in last if character.isprintable()).strip()
    return clean[:_LONGEST_NAME] or "upload"
