"""Programs killed at any moment, and programs that run for long: `make soak`, and the ordinary tests in small.

launcher  starts `rapa` quickly and often, and kills it
server    the process that it starts them from
kills     trainings and experiments killed and gone on with, compared with ones that were not
load      memory over long runs
leaks     mistakes that `load` must notice

`python -m tests.soak` is the long run, with a report.
"""
