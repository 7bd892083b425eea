"""What `grasp-rl train --help` says before it lists every option and value."""

from __future__ import annotations

HELP = """Usage: grasp-rl {command} [group=option ...] [key=value ...] [flags]

  grasp-rl {command}                                        the defaults, on a CPU, without a download
  grasp-rl {command} reward=NAME algorithm.steps=50         swap a part, set a value
  grasp-rl {command} -m seed=0,1,2 launcher=joblib          a sweep, one folder a job
  grasp-rl {command} -m seed=0,1,2 hydra.sweep.dir=FOLDER   again, only the jobs that FOLDER lacks
  grasp-rl train resume=RUN_FOLDER algorithm.steps=400  go on with a run

Flags
  --json              one JSON object on stdout, everything else on stderr
  --report            write the report of the run or sweep when it ends
  -m, --multirun      run every combination of the comma-separated values
  -c, --cfg job       print the composed config and stop (--resolve fills in the references)
  -cd, --config-dir   a folder of further options
  -i, --info defaults where each part of the config comes from

Options (group=option)

{options}

Values (key=value)

{values}"""
