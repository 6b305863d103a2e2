"""The router behind an endpoint: a hook for LiteLLM's proxy (extra `gateway`)."""

from router.gateway.hook import BrokerHook

__all__ = ["BrokerHook"]
