"""A registrar as one should not build it, to show that a scanner finds what there is to find: it tells who exists, and
lets anybody guess passwords for ever.

Usage: leaky_registrar.py HOST PORT USER:PASSWORD... Prints "ready".
"""

from __future__ import annotations

import hashlib
import re
import socket
import sys

_KEPT = re.compile(r"(?i)(via|from|to|call-id|cseq)\s*:")


def _md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def answer(text: str, users: dict[str, str]) -> str | None:
    """The response to a request, None for an ACK."""
    line, _, rest = text.partition("\r\n")
    method = line.split(" ")[0]
    if method in ("ACK", "SIP/2.0"):
        return None
    found = re.search(r"(?im)^to\s*:.*?sip:([^@>;]+)@", text)
    user = found[1] if found else ""
    status, extra = "200 OK", []
    if method == "OPTIONS":
        status = "200 OK" if user in users else "404 Not Found"
    elif user not in users:
        status = "404 Not Found"
    elif method == "INVITE":
        status = "486 Busy Here"
    else:
        given = re.search(r"(?im)^authorization\s*:(.*)$", text)
        fields = dict(re.findall(r'(\w+)="?([^",]+)"?', given[1])) if given else {}
        one, two = _md5(f"{user}:leaky:{users[user]}"), _md5(f"{method}:{fields.get('uri', '')}")
        if fields.get("response") != _md5(f"{one}:{fields.get('nonce')}:{two}"):
            status, extra = "401 Unauthorized", ['WWW-Authenticate: Digest realm="leaky", nonce="abc"']
    kept = [each for each in rest.split("\r\n\r\n")[0].split("\r\n") if _KEPT.match(each)]
    return "\r\n".join([f"SIP/2.0 {status}", *kept, "User-Agent: Leaky/1", *extra, "Content-Length: 0", "", ""])


def main() -> None:
    """Answer until killed."""
    users = dict(pair.split(":") for pair in sys.argv[3:])
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((sys.argv[1], int(sys.argv[2])))
    print("ready", flush=True)
    while True:
        data, source = server.recvfrom(65535)
        response = answer(data.decode("utf-8", "replace"), users)
        if response is not None:
            server.sendto(response.encode(), source)


if __name__ == "__main__":
    main()
