"""SIP for phones and between nodes: listeners, transactions, registrar, proxy.

`settings` is what the operator says, `service` the life of it all and the ordered steps that a request meets,
`admission` who may send one, `registering` the bindings of phones, `routing` the next hop, `forwarding` the forks,
`clock` the time of day.

How it is wired (nothing here imports another service; `domains` is the tuple of served domains)::

    table = BindingTable()                                # p2psipd.proto.sip.registrar: own bindings, in memory
    locator = Locator((                                   # p2psipd.services.locator
        OwnBindings(table, node_id, domains),
        OverlayBindings(location, table, node_id, domains),
    ))
    interconnect = Interconnect(                          # p2psipd.net.interconnect
        reactor, node_tls, judge, listen=(host, port), app_attach=overlay.app_attach
    )
    service = SipService(
        settings, location=store, credentials=source, locate=locator.locate, connector=interconnect,
        table=table, reactor=reactor, random=random.SystemRandom(), wall=time.time,
    )
    service.setServiceParent(application)                 # startService listens, stopService closes
    # when the overlay core orders DialApplication(node_id, application, addresses):
    interconnect.dial(node_id, addresses)

The seams are Protocols in :mod:`p2psipd.proto.sip.locating`, `edge` and `calls` beside it. A service for users
(presence, voice mail, a conference, push, stored messages) comes in as one more step of the locator, and sees
calls as one more CallObserver.
"""

from p2psipd.services.sip.service import SipService
from p2psipd.services.sip.settings import SipSettings

__all__ = ["SipService", "SipSettings"]
