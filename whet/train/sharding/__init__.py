"""Ways in which the ranks hold the weights that train. See `holding` for what the loop asks of each."""
