"""What LiteLLM loads as `broker_hook.broker`: a router on the bundle that BROKER_BUNDLE names, followed on disk.

Where BROKER_LOG names a folder, decisions and what became of them are logged there, with the text of the prompts.
"""

import os

from router import Router, Watcher
from router.gateway import BrokerHook
from router.outcomes import OutcomeLog

bundle, log = os.environ["BROKER_BUNDLE"], os.environ.get("BROKER_LOG")
router = Router.load(bundle)
watcher = Watcher(router, bundle).start()
broker = BrokerHook(router, OutcomeLog(log, keep_prompts=True) if log else None)
