"""Everything that is measured: the service, what it is compared with, and the limits of framework and database."""
