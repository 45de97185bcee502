"""Making Jasper's webhooks be what the settings say, and keeping their secrets."""
