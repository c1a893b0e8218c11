"""Asks Texture Auth whether the holder of an API key may act on an energy device."""

from texture_auth.authorizer import Authorizer, Authorizes
from texture_auth.decision import AuthorizedKey, Context, Decision, DeviceScope, Outcome, Question

__all__ = ["AuthorizedKey", "Authorizer", "Authorizes", "Context", "Decision", "DeviceScope", "Outcome", "Question"]
