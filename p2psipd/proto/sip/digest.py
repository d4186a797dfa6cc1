"""Digest authentication (RFC 7616, RFC 8760, RFC 3261 section 22): API published here, code follows.

Algorithm(Enum): MD5 "MD5", SHA_256 "SHA-256", SHA_512_256 "SHA-512-256" (.value = token)
ha1(algorithm, user, realm, password) -> str (lower hex)
NonceIssuer(key: bytes, lifetime=300.0): issue(wall, random) -> str; check(nonce, wall) -> NonceState(VALID, STALE, FORGED). Stateless: time and 64 random bits under HMAC-SHA-256 with the key.
NonceCounts(limit=20000): accept(nonce, count, now) -> bool    replay window of 64 counts a nonce, bounded; oldest nonces forgotten
Challenge(realm, nonce, algorithm, qop=("auth",), stale=False, opaque=None, domain=None): str() header value, Challenge.parse(text) -> Challenge
challenges(realm, nonce, algorithms, stale) -> list[str]   one header value an algorithm, most preferred first (RFC 8760 2.4)
Credentials: parse(text) -> Credentials(username, realm, nonce, uri, response, algorithm, cnonce, opaque, qop, nc(int), nc_text, ...) raises MalformedMessage; other schemes than Digest raise too
verify(credentials, method, ha1, body=b"") -> bool   constant-time; qop auth, auth-int, and none (RFC 2069)
answer(challenge, user, password_or_ha1, method, uri, cnonce, nc=1, body=b"") -> str   header value for Authorization / Proxy-Authorization
choose(challenges: Iterable[str], supported=...) -> Challenge | None  client side: the first one understood (RFC 8760 2.5)
"""
