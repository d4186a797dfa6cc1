"""SIP messages: lazy and byte-preserving (RFC 3261 section 7).

API (published):
parse_message(datagram: bytes) -> Request | Response      framing and start line; raises SipError (with .request if it can be answered)
Message (base of Request and Response)
  .get(name) -> str | None         first value line, unfolded, not comma-split       .get_all(name) -> list[str]   comma-split for list headers
  .has(name) -> bool               .headers -> list[(lower canonical name, raw line bytes)] (do not change in place)
  typed, decoded when first read, raise MalformedMessage: .top_via .vias .cseq .call_id .from_ .to .from_tag .to_tag (str|None) .contacts (tuple[NameAddr,...]) .contact_star (bool)
  .max_forwards (int|None) .routes .record_routes .paths (tuple[NameAddr,...]) .expires (int|None) .content_length .content_type (str|None) .allow .require .proxy_require .supported (tuple[str,...], option tags lower case)
  edits by whole lines: .push_via(via: Via | str) .pop_via() -> Via .set_via_received(host, port) .set(name, value) .add(name, value) .prepend(name, value) .remove(name) -> bool .remove_first(name) (first value of a list header) .set_body(data, content_type=None)
  .check()  the whole of what a proxy or UA must be able to read; raises MalformedMessage with .request = this. The transaction layer calls it; users of it need not.
  .encode() -> bytes (always has Content-Length)     .copy()      .is_request (bool)      .body: bytes
Request(method: str, uri_text: str, headers=(), body=b"")  headers: iterable of (name, value) str pairs.   .method .uri_text .uri (parsed, cached) .set_uri(uri | str)
Response(status: int, reason: str | None = None, headers=(), body=b"")  .status .reason
make_response(request, status, reason=None, to_tag=None, headers=()) -> Response   copies Via, From, To (+ tag unless 100 or it has one), Call-ID, CSeq, and Record-Route for dialog-forming 1xx/2xx (and Timestamp for 100)
REASONS: dict[int, str]
Header injection: a name or value with CR, LF or NUL raises MalformedMessage.
"""
