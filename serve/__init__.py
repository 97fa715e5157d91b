"""Answers HTTP requests with a model: an exported folder, a Hub id, or adapters on one base.

Knows nothing of how the model came to be: imports neither `tune` nor `dpo_train`.
"""

import os

# Read when their libraries are imported or start their processes, so they must stand here.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
# Which the line before would turn on: every replica would listen on a port of its own.
os.environ.setdefault("RAY_SERVE_ENABLE_DIRECT_INGRESS", "0")
