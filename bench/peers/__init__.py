"""What the service is measured against: receivers as other people write them. Each is a whole program."""
