"""What the flex template's launcher runs: the command headrace, with the template's parameters as its flags."""

import sys

from pipeline.start import entry
from pipeline.template import launcher_flags

if __name__ == "__main__":
    sys.argv[1:] = launcher_flags(sys.argv[1:])
    entry()
