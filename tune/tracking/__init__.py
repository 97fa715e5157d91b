"""TODO tune.tracking.wandb_client."""
