"""Settings of all tests: time decides nothing, so a machine that is slow or busy fails none."""

from hypothesis import HealthCheck, settings

settings.register_profile("graft", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("graft")
