"""Where a plan runs: by other engines than this process."""
