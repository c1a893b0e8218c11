"""Asks Texture Auth whether the holder of an API key may act on an energy device."""

from texture_auth.aio import AsyncAuthorizer, AuthorizesAsync
from texture_auth.authorizer import Authorizer, Authorizes
from texture_auth.deadlines import deadline
from texture_auth.decision import AuthorizedKey, Context, Decision, DeviceScope, Outcome, Question
from texture_auth.observing import Asked, Counters, Observer

__all__ = [
    "Asked",
    "AsyncAuthorizer",
    "AuthorizedKey",
    "Authorizer",
    "Authorizes",
    "AuthorizesAsync",
    "Context",
    "Counters",
    "Decision",
    "DeviceScope",
    "Observer",
    "Outcome",
    "Question",
    "deadline",
]
