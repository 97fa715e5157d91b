"""This package answers HTTP requests with a model: a folder, a Hub id, or adapters on one base.

It knows nothing of how the model came to be, and imports neither `tune` nor `dpo_train`.
"""

import logging
import os

# The libraries read these when they are imported or start their processes: they must stand here.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
# The line before would turn this on, and every replica would listen on a port of its own.
os.environ.setdefault("RAY_SERVE_ENABLE_DIRECT_INGRESS", "0")

# Transformers imports bitsandbytes where it is installed. On some CPUs it then says that it lacks a
# kernel from the Hub, which nothing here uses.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
