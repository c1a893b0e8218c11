"""A device API of about a hundred lines that asks Texture Auth before it acts: `python -m device_api`."""
