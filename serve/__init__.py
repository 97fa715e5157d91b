"""Answers HTTP requests with a model: a folder, a Hub id, or adapters on one base.

It does not know how the model was trained, and imports neither `tune` nor `dpo_train`.
"""

import logging
import os

# Ray reads these variables when it is imported or starts processes, so they are set here.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
# The variable above turns this one on, and each replica would then listen on its own port.
os.environ.setdefault("RAY_SERVE_ENABLE_DIRECT_INGRESS", "0")

# Transformers imports bitsandbytes if it is installed. On some CPUs that warns of a missing kernel
# from the Hub, which we don't use, so we silence it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
