"""What the flex template's launcher runs: the command headrace, with the template's parameters as its flags."""

import sys

from headrace.pipeline.flags.template_parameters import launcher_flags
from headrace.pipeline.start import entry

if __name__ == "__main__":
    sys.argv[1:] = launcher_flags(sys.argv[1:])
    entry()
