"""TODO tune.publish.push."""
