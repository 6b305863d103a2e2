"""The service: LiteLLM's proxy with the router, the way back for outcomes and a page to look at (extra `gateway`)."""
