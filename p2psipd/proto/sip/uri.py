"""URIs of SIP: sip, sips, tel, and any other scheme kept as it came (RFC 3261 section 19.1, RFC 3966).

API (published): `parse_uri(text) -> SipUri | TelUri | OpaqueUri` raises MalformedUri (status 400). All are immutable, hashable,
have `.scheme` (lower case) and `str()` that is verbatim the parsed text.

SipUri: `SipUri.parse(text)` (raises UnsupportedScheme for another scheme); `SipUri(host, user=None, password=None, port=None,
  params=Parameters(), headers="", scheme="sip")`; attributes scheme, user (raw, escapes kept), password, host (lower case, IPv6
  without brackets), port (int | None), params (Parameters), headers (str after "?"); properties `aor` ("user@host", unescaped,
  host in lower case, no port), `unescaped_user`, `is_secure`, `hostport` ("[v6]:port" as it is written in a URI), `transport`
  (lower case or None), `lr`, `gr` (str, "" for a bare gr, None when absent), `maddr`, `ob`; `with_param(name, value=None)`, `without_params(*names)`, `replace(**changes)`, `bare()` (no params, no
  headers); `==` and hash follow RFC 3261 section 19.1.4 (so sets of URIs work).
TelUri: number (visual separators removed), params, `is_global`; == per RFC 3966 section 5.
OpaqueUri: scheme, text.
"""
