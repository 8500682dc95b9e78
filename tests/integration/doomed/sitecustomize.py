"""On the path of a rank that is to come to grief: WHET_DOOM says where and how, e.g. `sft 7 1 kill`.

Python imports this module by its name when it starts.
"""

import os
import signal
import time

if "WHET_DOOM" in os.environ and "RANK" in os.environ:
    stage, step, rank, how = os.environ["WHET_DOOM"].split()
    if rank == os.environ["RANK"]:
        from whet.errors import DataError
        from whet.train.loop import Loop

        before = Loop._step

        def doomed(loop, number):
            if loop.title == stage and number == int(step):
                match how:
                    case "kill":
                        os.kill(os.getpid(), signal.SIGKILL)
                    case "stop":
                        time.sleep(2.5)  # its last sign of life is of this step, and not of a second ago
                        os.kill(os.getpid(), signal.SIGSTOP)
                    case "hang":
                        time.sleep(3600)
                    case "error":
                        raise DataError("is broken", file="rows.jsonl", line=7, fix="mend it")
                    case "defect":
                        raise ZeroDivisionError("nobody thought of this")
            return before(loop, number)

        Loop._step = doomed
