"""Where the facts are kept: the contract, and Peewee behind it."""
