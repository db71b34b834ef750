"""A worker process of Beam's in-process runner: Beam's own main program without its talk.

Beam's worker prints some twenty lines of information and irrelevant warnings on start, before it reads any log level. An
exception in a transform still reaches the launcher, which raises it with the worker's traceback.
"""

import logging
import sys

if __name__ == "__main__":
    logging.disable(logging.ERROR)
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)
