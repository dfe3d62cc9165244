"""What each rank does in the tests of heartbeats: ``silent_ranks.py WHERE``, with a patience of seconds.

WHERE: "collective" or "meeting", where the ranks wait for one another until one of them is stopped from outside; or
"busy", where rank 0 works for longer than any patience while the others wait, and all end well.
"""

import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from skyreels_v2_infer.distributed import heartbeat, team
from skyreels_v2_infer.launch import Launch

heartbeat.BEAT, heartbeat.SILENCE = 0.2, 3.0
where = sys.argv[1]
if where == "busy":
    team.COLLECTIVE = timedelta(seconds=2)
with team.assembled(Launch.from_environment(), "cpu") as ranks:
    print("ready", flush=True)
    if where == "busy":
        with ranks.first_rank_first():
            if not ranks.rank:
                time.sleep(5)
        assert ranks.same(ranks.rank) == 0
        if not ranks.rank:
            time.sleep(5)
        ranks.meet()
    while where != "busy":
        if where == "collective":
            dist.all_reduce(torch.zeros(1))
        else:
            ranks.meet()
print("done", flush=True)
