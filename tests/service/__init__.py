"""The services by themselves, without a wire."""
