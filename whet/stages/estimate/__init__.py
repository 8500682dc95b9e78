"""What a plan's training stages will cost: the plan, its data and its models' shapes, put into numbers for
`whet.estimate`. Nothing is loaded but tokenizers, and nothing is trained but by a probe."""
