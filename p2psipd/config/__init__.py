"""The configuration file: one TOML file, checked whole before anything starts; every default stands here,
once.

:func:`load_all` reads and checks the file and what it names (overlay document, certificate, key), that these belong
together, and reports all faults at once, each as ``file:line: key: expected ...``, in a :class:`ConfigError`, which a
command answers with exit code :data:`EXIT_CONFIG`. :func:`load` and :func:`load_material` are its halves.

``tomllib`` tells no line numbers, so :mod:`p2psipd.toml_lines` maps each key path to its line.
"""

from p2psipd.config.faults import EXIT_CONFIG as EXIT_CONFIG
from p2psipd.config.faults import ConfigError as ConfigError
from p2psipd.config.faults import Fault as Fault
from p2psipd.config.material import Material as Material
from p2psipd.config.material import load_all as load_all
from p2psipd.config.material import load_material as load_material
from p2psipd.config.material import read_document_apart as read_document_apart
from p2psipd.config.material import read_unless_in_force as read_unless_in_force
from p2psipd.config.model import Address as Address
from p2psipd.config.model import DnsSection as DnsSection
from p2psipd.config.model import NodeConfig as NodeConfig
from p2psipd.config.model import PeerSection as PeerSection
from p2psipd.config.model import SipSection as SipSection
from p2psipd.config.model import parse_address as parse_address
from p2psipd.config.reading import DEFAULT_NODE_SIP_PORT as DEFAULT_NODE_SIP_PORT
from p2psipd.config.reading import KEYLOG_VARIABLE as KEYLOG_VARIABLE
from p2psipd.config.reading import echo_host as echo_host
from p2psipd.config.reading import listener_key as listener_key
from p2psipd.config.reading import load as load
from p2psipd.config.reading import parse as parse
