"""gRPC: everything between the socket and the services."""
