"""Training: a feed gives batches, a learner turns a batch into a loss, the loop steps."""
