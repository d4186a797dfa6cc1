"""Header values of SIP that are more than text (RFC 3261 sections 7.3, 20, 25).

API (published), all immutable with a verbatim str():
Parameters: `Parameters.parse(";a=b;c")`, `Parameters((("tag", "x"), ("lr", None)))`; `.get(name, default=None) -> str|None` (name case-insensitive, value verbatim
  with its quotes; a valueless parameter gives ""), `name in params`, iteration yields (name, value|None), `.with_param(name, value=None)`, `.without(*names)`, str() = ";a=b;c", len, bool.
NameAddr: `NameAddr.parse(text)`, `NameAddr(uri, display="", params=Parameters())`, `NameAddr.parse_list(text) -> list[NameAddr]`;
  .display (unquoted), .uri (SipUri | TelUri | OpaqueUri, parsed when first read), .uri_text, .params (header parameters), .tag (str|None), .q (float|None), .expires (int|None), .with_param(...), .without(...), .with_uri(uri).
Via: `Via.parse(text)`, `Via(transport, host, port=None, params=Parameters(), protocol="SIP/2.0")`; .transport (upper case), .host, .port (int|None), .params, .branch (str|None),
  .received (str|None), .rport (int|None; requested but empty -> 0), .sent_by (host, port or default of the transport), .with_param(...).
CSeq(number, method): NamedTuple, `CSeq.parse(text)`.
Functions: split_list(text) -> list[str] (commas outside quotes and <>), quote(text) -> str, unquote(text) -> str.
Faults raise MalformedMessage (400).
"""
