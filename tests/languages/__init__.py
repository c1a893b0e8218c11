"""Services in other languages, asking a real server: what they are told, and what they see when something is wrong."""
