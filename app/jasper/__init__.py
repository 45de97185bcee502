"""Everything that is Jasper's: its names, its proof of identity, its payloads, its REST API."""
