"""Redirects: for domains where this node tells callers where to go instead of going there (RFC 3261 section 8.3)."""

from __future__ import annotations

from collections.abc import Sequence

from p2psipd.proto.sip.locating import Binding, Target, encode_gr, parse_flow_text
from p2psipd.proto.sip.message import Request, Response, make_response
from p2psipd.proto.sip.uri import SipUri, parse_uri


def redirection(request: Request, uri: SipUri, targets: Sequence[Target]) -> Response | None:
    """The 302 with every contact of the user, best first; None where a target is no contact (a service of a node).

    Never 305, which only user agents may send. A contact that nobody but its registrar reaches (behind a NAT, over
    a flow, through a Path) is given as a GRUU: a request to it comes back to us and is forwarded.
    """
    values = []
    for target in sorted(targets, key=lambda each: -each.q) if len(targets) > 1 else targets:
        if target.binding is None:
            return None
        contact = _contact(uri, target.binding)
        values.append(f"<{contact}>;q={target.q:.3g}" if len(targets) > 1 or target.q < 1 else f"<{contact}>")
    return make_response(request, 302, headers=[("Contact", value) for value in dict.fromkeys(values)])


def _contact(uri: SipUri, binding: Binding) -> str:
    if not binding.path and not binding.reg_id:
        where, contact = parse_flow_text(binding.received), parse_uri(binding.contact)
        if where is not None and isinstance(contact, SipUri) and contact.host == where[2][0]:
            return binding.contact
    return str(uri.bare().with_param("gr", encode_gr(binding.node_id, binding.key)))
