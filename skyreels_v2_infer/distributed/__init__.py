"""Several processes (ranks) on one video: identity, agreement, failure handling, and the exchange of tensors."""
