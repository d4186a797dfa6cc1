-- RELOAD over TLS for Wireshark (RFC 6940 section 6.6.2).
--
-- Wireshark has the dissector "reload-framing" but offers it to plain TCP and to DTLS only.  This script gives it
-- the octets of a TLS connection, cut into its frames: a record may hold several, and a frame may begin in one
-- record and end in another.
--
--   tshark -X lua_script:reload_over_tls.lua -o tls.keylog_file:KEYS -o reload.topology_plugin:KADEMLIA -r FILE

local PORT = 6084
local DATA, HEADER_OF_DATA, LENGTH_OF_ACK = 128, 8, 9

local framing = Dissector.get("reload-framing")
local protocol = Proto("reload_over_tls", "RELOAD over TLS")

-- How many octets the frame at `offset` has; dissect_tcp_pdus waits until HEADER_OF_DATA of them are there.
local function length_of_frame(octets, _, offset)
  if octets(offset, 1):uint() == DATA then
    return HEADER_OF_DATA + octets(offset + 5, 3):uint()
  end
  return LENGTH_OF_ACK
end

local function dissect_frame(octets, packet, tree)
  return framing:call(octets, packet, tree)
end

function protocol.dissector(octets, packet, tree)
  dissect_tcp_pdus(octets, tree, HEADER_OF_DATA, length_of_frame, dissect_frame)
  return octets:len()
end

DissectorTable.get("tls.port"):add(PORT, protocol)
-- The port belongs to plain "reload-framing" otherwise.
DissectorTable.get("tcp.port"):set(PORT, Dissector.get("tls"))
