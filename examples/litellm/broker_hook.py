"""What LiteLLM loads as `broker_hook.broker`: a router on the bundle that BROKER_BUNDLE names."""

import os

from router import Router
from router.gateway import BrokerHook

router = Router.load(os.environ["BROKER_BUNDLE"])
broker = BrokerHook(router)
