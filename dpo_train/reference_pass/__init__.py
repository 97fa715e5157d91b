"""How the reference log-probs are computed: rows in shards, tokens, the merge into splits."""
