"""`whet export verl`: a stage of online RL as verl 0.9.1 runs it.

    plan ─► objective, settings ─► overrides.txt        verl's keys, one a line
         ─► rows                ─► train.parquet, val.parquet
         ─► spec                ─► reward.json, reward.py    whet's own reward, in a process of whet's own
"""
