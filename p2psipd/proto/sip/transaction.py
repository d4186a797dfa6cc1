"""The transaction layer (RFC 3261 section 17, RFC 6026, RFC 4320): API published here, code follows.

TransactionLayer(random, timers=Timers(t1=0.5, t2=4.0, t4=5.0, trying_after=0.2), limits=Limits(open=20000, lingering=50000))
  receive(item, now) -> list[Output]      next_timer() -> float | None      handle_timer(now) -> list[Output]
Inputs
  MessageReceived(flow, message)          as parsed; the layer runs message.check(), writes received/rport into the top Via (RFC 3261 18.2.1, RFC 3581), matches
  SendRequest(flow, request, key, branch_tag="")   key: any hashable of the caller's, unique among live client transactions; it IS the client transaction id. The layer pushes our Via
        (flow.sent_by, a new branch; branch_tag is appended to it, for RFC 5393 loop detection): the request must NOT have our Via yet. The given request is not changed.
        An ACK is refused here: use SendStateless.
  SendResponse(transaction, response)     transaction: id from RequestReceived. 2xx to INVITE may be given again (retransmission by the TU, RFC 6026). 408 to non-INVITE is swallowed (RFC 4320).
  SendStateless(flow, message)            request (ACK for 2xx, or stateless): our Via is pushed, nothing is remembered; response: sent as it is
  Cancel(key, reason_header=None)         CANCEL of a client INVITE (RFC 3261 9.1): waits for a provisional response; the CANCEL's own responses are not reported
  TransportFailed(flow=None, transaction=None, reason="")   either everything on a flow, or one client key / server id
Outputs
  SendMessage(flow, data: bytes, transaction=id|key|None)
  RequestReceived(transaction, flow, request, invite=None)  ACK: transaction None, (invite = id of the accepted INVITE if it still can be matched); CANCEL: own transaction to answer (200/481), invite = id of the INVITE it cancels or None
  ResponseReceived(transaction: key | None, response, flow)    every 1xx, the final; for INVITE every 2xx. None: a stray 2xx to INVITE (no transaction); other strays are dropped. Our Via is still on top.
  TransactionTimedOut(transaction)        client: as 408; INVITE server: no ACK came (timer H)
  TransactionFailed(transaction, reason)  transport failure: as 503 on the client side
  TransactionEnded(transaction)           the id is free; always the last of an id, exactly once
  MessageRejected(flow, error: SipError)  malformed input; its answer (if any) is a SendMessage before it
"""
