"""The callback endpoint: from the socket to the commit."""
