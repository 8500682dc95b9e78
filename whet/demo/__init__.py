"""The playground: a small world of tasks with exact checkers, and a base checkpoint that has read about it."""
