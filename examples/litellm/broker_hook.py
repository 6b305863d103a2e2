"""What LiteLLM loads as `broker_hook.broker`: a router on the bundle that BROKER_BUNDLE names, followed on disk."""

import os

from router import Router, Watcher
from router.gateway import BrokerHook

bundle = os.environ["BROKER_BUNDLE"]
router = Router.load(bundle)
watcher = Watcher(router, bundle).start()
broker = BrokerHook(router)
