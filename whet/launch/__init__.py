"""Where a plan runs: as several processes of this machine, on a cluster, or by another program."""
