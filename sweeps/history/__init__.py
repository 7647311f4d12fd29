"""What was ever trained, by what it depends on: keys, entries, leases."""
