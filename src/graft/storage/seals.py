"""JSON objects that carry their own SHA-256 as their first entry, so that any changed byte is seen.

{"sha256": "64 letters", ...}        the digest is that of the same bytes without this entry
"""

import hashlib

_START, _END = b'{"sha256": "', b'",'
HEX = 64  # letters of a digest


def seal(body: bytes) -> bytes:
    """Return the bytes of a JSON object with their SHA-256 in front.

    >>> seal(b'{"a": 1}')
    b'{"sha256": "f9d86028c6e0d64e225186f96acb69338b2c59764df79162107f5c4bb34d1310","a": 1}'
    """
    return _START + hashlib.sha256(body).hexdigest().encode() + _END + body.removeprefix(b"{")


def unseal(raw: bytes) -> bytes | None:
    """Return what was sealed; None for bytes that are not sealed, or were changed since.

    >>> unseal(seal(b'{"a": 1}'))
    b'{"a": 1}'
    >>> unseal(seal(b'{"a": 1}').replace(b"1}", b"2}"))
    """
    body = b"{" + raw[len(_START) + HEX + len(_END) :]
    return body if raw == seal(body) else None
