"""Several processes of one job: who this one is, where they meet, and whether all of them are alive."""
