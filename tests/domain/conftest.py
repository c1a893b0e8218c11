from hypothesis import settings

# Deadlines measure the machine that the tests share, not the rules.
settings.register_profile("rules", deadline=None)
settings.load_profile("rules")
