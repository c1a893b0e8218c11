"""The use cases: each method reads as load, decide, save, return."""
