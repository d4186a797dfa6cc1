"""Hypothesis strategies for every RELOAD structure and body."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import strategies as st

from p2psipd.proto.reload.ids import NodeId, ResourceId
from p2psipd.proto.reload.messages import (
    CANDIDATE_HOST,
    CANDIDATE_RELAY,
    CANDIDATE_SRFLX,
    CONFIG_UPDATE_CONFIG,
    CONFIG_UPDATE_KIND,
    DTLS_UDP_SR,
    DTLS_UDP_SR_NO_ICE,
    TLS_TCP_FH_NO_ICE,
    AppAttachAns,
    AppAttachReq,
    ArrayEntry,
    ArrayEntryMeta,
    AttachAns,
    AttachReq,
    Body,
    ConfigUpdateAns,
    ConfigUpdateReq,
    DataModel,
    DataValue,
    DictionaryEntry,
    DictionaryEntryMeta,
    ErrorResponse,
    FetchAns,
    FetchKindResponse,
    FetchReq,
    FindAns,
    FindReq,
    IceCandidate,
    JoinAns,
    JoinReq,
    LeaveAns,
    LeaveReq,
    MetaData,
    PingAns,
    PingReq,
    ProbeAns,
    ProbeReq,
    RouteQueryAns,
    RouteQueryReq,
    StatAns,
    StatKindResponse,
    StatReq,
    StoreAns,
    StoredData,
    StoredDataSpecifier,
    StoredMetaData,
    StoreKindData,
    StoreKindResponse,
    StoreReq,
    UpdateAns,
    UpdateReq,
)
from p2psipd.proto.reload.security import (
    CERT_HASH,
    CERT_HASH_NODE_ID,
    NO_SIGNATURE,
    SecurityBlock,
    Signature,
    SignerIdentity,
)
from p2psipd.proto.reload.wire import (
    Extension,
    ForwardingHeader,
    ForwardingOption,
    MessageContents,
    NodeDestination,
    OpaqueDestination,
    ResourceDestination,
)

KINDS = {
    1: DataModel.DICTIONARY,
    2: DataModel.SINGLE,
    16: DataModel.ARRAY,
    0xF0000001: DataModel.DICTIONARY,
    0xF0000005: DataModel.ARRAY,
}

u8 = st.integers(0, 0xFF)
u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFFFFFF)
u64 = st.integers(0, 0xFFFFFFFFFFFFFFFF)
short = st.binary(max_size=40)


def tuples_of(items: st.SearchStrategy, most: int = 3) -> st.SearchStrategy:
    """Tuples of up to ``most`` items."""
    return st.lists(items, max_size=most).map(tuple)


nodes = st.binary(min_size=16, max_size=16).filter(any).map(NodeId)
resources = st.binary(min_size=1, max_size=254).map(ResourceId)

node_destinations = st.builds(NodeDestination, nodes)
opaque_destinations = st.builds(OpaqueDestination, st.binary(max_size=254))
resource_destinations = st.builds(ResourceDestination, resources)
passing = st.one_of(node_destinations, opaque_destinations)
destinations = st.one_of(passing, resource_destinations)
destination_lists = st.builds(lambda head, last: (*head, last), st.lists(passing, max_size=3), destinations)
options = st.builds(ForwardingOption, st.integers(1, 255), u8, short)
headers = st.builds(
    ForwardingHeader,
    u32,
    u16,
    u8,
    st.integers(0, 0xFFFFFF),
    st.booleans(),
    u64,
    u32,
    tuples_of(passing, 4),
    destination_lists,
    tuples_of(options),
)

identities = st.builds(SignerIdentity, st.sampled_from((CERT_HASH, CERT_HASH_NODE_ID)), u8, short)
signatures = st.one_of(
    st.just(NO_SIGNATURE), st.builds(Signature, u8, u8, identities, st.binary(max_size=80))
)
security_blocks = st.builds(SecurityBlock, tuples_of(short), signatures)
extensions = st.builds(Extension, st.integers(1, 0xFFFF), st.booleans(), short)
contents = st.builds(
    MessageContents, st.one_of(st.integers(1, 0x7FFF), st.just(0xFFFF)), short, tuples_of(extensions)
)

data_values = st.builds(DataValue, st.booleans(), short)
metadata = st.builds(MetaData, st.booleans(), u32, u8, short)
VALUES = {
    DataModel.SINGLE: data_values,
    DataModel.ARRAY: st.builds(ArrayEntry, u32, data_values),
    DataModel.DICTIONARY: st.builds(DictionaryEntry, short, data_values),
}
METADATA = {
    DataModel.SINGLE: metadata,
    DataModel.ARRAY: st.builds(ArrayEntryMeta, u32, metadata),
    DataModel.DICTIONARY: st.builds(DictionaryEntryMeta, short, metadata),
}
known_kinds = st.sampled_from(sorted(KINDS))


def stored(kind: int) -> st.SearchStrategy[StoredData]:
    """A stored value of the kind's model."""
    return st.builds(StoredData, u64, u32, VALUES[KINDS[kind]], signatures)


def stored_metadata(kind: int) -> st.SearchStrategy[StoredMetaData]:
    """Metadata of a value of the kind's model."""
    return st.builds(StoredMetaData, u64, u32, METADATA[KINDS[kind]])


def _ranges(edges: list[int]) -> tuple[tuple[int, int], ...]:
    edges = sorted(edges)
    return tuple(zip(edges[::2], edges[1::2], strict=False))


array_ranges = st.lists(u32, unique=True, max_size=6).map(_ranges)


def specifier(kind: int) -> st.SearchStrategy[StoredDataSpecifier]:
    """A specifier of the kind's model."""
    model = KINDS[kind]
    ranges = array_ranges if model is DataModel.ARRAY else st.none()
    keys = tuples_of(short) if model is DataModel.DICTIONARY else st.none()
    return st.builds(StoredDataSpecifier, st.just(kind), u64, ranges, keys)


specifiers = tuples_of(known_kinds.flatmap(specifier))
kind_data = tuples_of(
    known_kinds.flatmap(lambda kind: st.builds(StoreKindData, st.just(kind), u64, tuples_of(stored(kind))))
)


def _distinct(data: tuple[StoreKindData, ...]) -> tuple[StoreKindData, ...]:
    return tuple({item.kind: item for item in data}.values())


addresses = st.one_of(
    st.integers(0, 2**32 - 1).map(lambda number: str(IPv4Address(number))),
    st.integers(0, 2**128 - 1).map(lambda number: str(IPv6Address(number))),
)


def candidates(links: tuple[int, ...]) -> st.SearchStrategy[tuple[IceCandidate, ...]]:
    """Candidates of links that may stand in one list."""
    host = st.tuples(st.just(CANDIDATE_HOST), st.none())
    other = st.tuples(st.sampled_from((CANDIDATE_SRFLX, CANDIDATE_RELAY)), st.tuples(addresses, u16))
    candidate = st.builds(
        lambda host, port, link, foundation, priority, kind, extensions: IceCandidate(
            host, port, link, foundation, priority, kind[0], kind[1], extensions
        ),
        addresses,
        u16,
        st.sampled_from(links),
        short,
        u32,
        st.one_of(host, other),
        tuples_of(st.tuples(short, short), 2),
    )
    return tuples_of(candidate)


candidate_lists = st.one_of(candidates((DTLS_UDP_SR,)), candidates((TLS_TCP_FH_NO_ICE, DTLS_UDP_SR_NO_ICE)))
probe_types = st.integers(1, 255)

BODIES: dict[type[Body], st.SearchStrategy[Body]] = {
    ProbeReq: st.builds(ProbeReq, tuples_of(probe_types)),
    ProbeAns: st.builds(ProbeAns, tuples_of(st.tuples(probe_types, u32))),
    AttachReq: st.builds(AttachReq, short, short, short, candidate_lists, st.booleans()),
    AttachAns: st.builds(AttachAns, short, short, short, candidate_lists, st.booleans()),
    StoreReq: st.builds(StoreReq, resources, u8, kind_data.map(_distinct)),
    StoreAns: st.builds(StoreAns, tuples_of(st.builds(StoreKindResponse, u32, u64, tuples_of(nodes)))),
    FetchReq: st.builds(FetchReq, resources, specifiers),
    FetchAns: st.builds(
        FetchAns, kind_data.map(lambda data: tuple(FetchKindResponse(*item) for item in data))
    ),
    StatReq: st.builds(StatReq, resources, specifiers),
    StatAns: st.builds(
        StatAns,
        tuples_of(
            known_kinds.flatmap(
                lambda kind: st.builds(StatKindResponse, st.just(kind), u64, tuples_of(stored_metadata(kind)))
            )
        ),
    ),
    FindReq: st.builds(FindReq, resources, st.lists(u32, unique=True, max_size=5).map(tuple)),
    FindAns: st.builds(FindAns, tuples_of(st.tuples(u32, st.binary(max_size=254).map(ResourceId)))),
    JoinReq: st.builds(JoinReq, nodes, short),
    JoinAns: st.builds(JoinAns, short),
    LeaveReq: st.builds(LeaveReq, nodes, short),
    LeaveAns: st.builds(LeaveAns),
    UpdateReq: st.builds(UpdateReq, short),
    UpdateAns: st.builds(UpdateAns, short),
    RouteQueryReq: st.builds(RouteQueryReq, st.booleans(), destinations, short),
    RouteQueryAns: st.builds(RouteQueryAns, short),
    PingReq: st.builds(PingReq, short),
    PingAns: st.builds(PingAns, u64, u64),
    AppAttachReq: st.builds(AppAttachReq, short, short, u16, short, candidate_lists),
    AppAttachAns: st.builds(AppAttachAns, short, short, u16, short, candidate_lists),
    ConfigUpdateReq: st.one_of(
        st.builds(ConfigUpdateReq, st.just(CONFIG_UPDATE_CONFIG), short),
        st.builds(ConfigUpdateReq, st.just(CONFIG_UPDATE_KIND), st.just(b""), tuples_of(short)),
    ),
    ConfigUpdateAns: st.builds(ConfigUpdateAns),
    ErrorResponse: st.builds(ErrorResponse, u16, short),
}
bodies = st.one_of(*BODIES.values())
