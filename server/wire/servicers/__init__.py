"""The gRPC services: each method decodes, calls one method of a service, encodes."""
