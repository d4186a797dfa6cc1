"""Who is who: node certificates, the overlay's authority, signatures (RFC 6940 sections 11.3 and 13.4)."""
