"""What a server tells of itself, as Prometheus reads it."""
