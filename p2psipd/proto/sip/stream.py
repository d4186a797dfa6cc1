"""SIP over byte streams: TCP, TLS and (as one message a frame) WebSocket (RFC 3261 section 18.3, RFC 5626 section 3.5.1).

API (published): StreamParser(max_header=65536, max_body=65536).feed(data: bytes) -> list[Request | Response | KeepAlive]; raises SipError when the stream can't be trusted
any more (answer error.request if there is one, then close); messages parsed before the fault are in `error.before`? no: they are returned first, the fault is raised by the next feed (feed(b"") too), `failed` says that there is one.
KeepAlive.PING (CRLFCRLF: answer PONG = b"\\r\\n"), KeepAlive.PONG (a lone CRLF between messages). `.pending` bytes held back.
"""
